"""The control: with a reward that says nothing, GRPO teaches nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.recipe import load_recipe
from mmreason.schema import Recipe
from mmreason.train.run import train
from tests.train import small

ROOT = Path(__file__).parents[2]
SILENT: dict[str, Any] = {
    "reward_funcs": ["constant"],
    "reward_weights": None,
    "gate": {"name": "none"},
    "beta": 0.0,
    "weight_decay": 0.0,
}


def check(run: Path, steps: int) -> None:
    lines = [line for line in small.metrics(run) if line["stage"] == "grpo"]
    assert len(lines) == steps
    for line in lines:
        assert line["reward_std"] == 0.0 and line["frac_reward_zero_std"] == 1.0
        assert line["loss"] == 0.0 and line["grad_norm"] == 0.0
    assert small.same_weights(run / "stages" / "sft", run / "stages" / "grpo")
    measured = small.evaluation(run)
    assert measured["sft"]["overall"] == measured["grpo"]["overall"]


def test_a_constant_reward_moves_no_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    grpo = small.GRPO | SILENT | {"max_steps": 4}
    train(small.recipe(tmp_path / "run", stages=[small.SFT, grpo]))
    check(tmp_path / "run", 4)


@pytest.mark.slow
def test_a_constant_reward_improves_nothing_in_the_debug_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    tree = load_recipe(ROOT / "recipes" / "debug.yaml").model_dump()
    tree["stages"][1] |= SILENT
    tree |= {"output_dir": str(tmp_path / "run"), "num_threads": 1}
    train(Recipe.model_validate(tree))
    check(tmp_path / "run", tree["stages"][1]["max_steps"])
