"""The comparison with TRL on a very small shape; its steps are left out where TRL (the extra `bench`) is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.bench import Shape
from tests.bench.shapes import SMALL
from tests.benchmarks import against_trl


@pytest.fixture
def trl() -> Any:
    return pytest.importorskip("trl", reason="trl is not installed: pip install -e '.[bench]'")


@pytest.mark.slow
def test_both_sides_do_a_step_of_the_same_size(trl: Any) -> None:
    result = against_trl.measured(SMALL, 2)
    assert result["completion_tokens"] == SMALL.group * SMALL.new_tokens
    assert result["trl_s"] > 0 and result["mmreason_s"] > 0 and result["rounds"] == 2
    assert result["ratio"] == pytest.approx(result["trl_s"] / result["mmreason_s"])
    assert result["versions"]["trl"] == trl.__version__ and result["versions"]["torch"] == torch.__version__
    assert result["shape"] == SMALL.as_dict() and result["peak_rss_bytes"] > 2**20


@pytest.mark.slow
def test_sides_that_learn_other_numbers_of_tokens_are_no_comparison(
    trl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = against_trl.grpo_step

    def shorter(*given: object) -> object:
        ours = step(*given)  # type: ignore[arg-type]
        return lambda: ours() | {"tokens/learned": 47.0}

    monkeypatch.setattr(against_trl, "grpo_step", shorter)
    with pytest.raises(ValueError, match="must learn 48 tokens a step; they learned .*47"):
        against_trl.measured(SMALL, 1)


def test_the_script_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    words = ["--json", str(out), "--rounds", "1", "--image-tokens", "16", "--new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["against_trl.py", *words])
    monkeypatch.setattr(
        against_trl, "measured", lambda shape, rounds: {"shape": shape.as_dict(), "rounds": rounds}
    )
    against_trl.main()
    told = json.loads(out.read_text())
    assert told["rounds"] == 1 and told["shape"] == Shape(image_tokens=16, new_tokens=4).as_dict()
