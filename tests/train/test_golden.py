"""Step by step, the numbers that this code gave before: a change that moves one of them has to say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train import small
from tests.train.golden_run import FOLDER, numbers

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # a policy loss passes through zero, where a relative bound says nothing


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        small.without_probe(patch)
        return numbers(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_the_numbers_of_every_step(stage: str, now) -> None:
    golden = json.loads(Path(FOLDER / f"{stage}.json").read_text())
    assert len(golden) == len(now[stage]) == {"sft": 6, "grpo": 8}[stage]
    for step, (line, expected) in enumerate(zip(now[stage], golden, strict=True), start=1):
        assert line == pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE), f"{stage} step {step}"
