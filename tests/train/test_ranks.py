"""Two processes: what each of them met is known to both, and a killed run goes on as the one that was never killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.train import small
from tests.train.pictures import break_picture, write_pictures
from tests.train.ranks import train_in_ranks

SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "free",
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
}
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "max_steps": 4,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "reward_funcs": [small.REWARD],
    "gate": {"name": "balanced", "low": 0.0, "high": 0.9, "max_rounds": 3},
    "save_steps": 2,
}


def tree(out: Path, rows: Path, **keys: Any) -> dict[str, Any]:
    data = {"rows": {"path": str(rows)}, "one": {"path": str(rows), "limit": 1}}
    evaluation = {"data": ["one"], "max_completion_length": 4}
    stages = [SFT, GRPO | {"data": ["rows"]}]
    recipe = small.recipe(out, data=data, stages=stages, eval=evaluation, max_bad_fraction=0.34, **keys)
    return recipe.model_dump()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows; the pictures of two of them are broken."""
    path = write_pictures(tmp_path_factory.mktemp("rows"), 9)
    for i in (3, 5):
        break_picture(path.parent / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def undisturbed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks") / "run"
    assert train_in_ranks(tree(out, rows)) == [0, 0]
    return out


def test_one_row_is_evaluated_by_two_ranks(undisturbed: Path) -> None:
    assert {name: block["overall"]["n"] for name, block in small.evaluation(undisturbed).items()} == {
        "before": 1,
        "sft": 1,
        "grpo": 1,
    }


def test_both_ranks_rows_are_in_quarantine_once_and_in_the_checkpoint(undisturbed: Path) -> None:
    named = [json.loads(line)["id"] for line in (undisturbed / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(named) == ["row-3", "row-5"]
    state = json.loads((undisturbed / "checkpoint-7" / "trainer_state.json").read_text())
    assert sorted(state["quarantine"]["rows"]["rows"]) == ["row-3", "row-5"]


def test_the_gate_counts_both_ranks_groups(undisturbed: Path) -> None:
    last = small.metrics(undisturbed)[-1]
    judged = sum(last[f"curriculum/{name}"] for name in ("admitted", "dropped", "unverified"))
    assert judged >= 4 * 2 * 2  # steps x ranks x groups a rank learns from
    ranks = [json.loads((undisturbed / "checkpoint-7" / f"rank_{r}.json").read_text()) for r in range(2)]
    assert ranks[0]["method"]["gate"] == ranks[1]["method"]["gate"]


@pytest.mark.parametrize("step", [3, 6])
def test_killed_and_resumed(step: int, undisturbed: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tree(tmp_path / "run", rows)
    assert train_in_ranks(recipe, step=step)[0] == -signal.SIGKILL
    assert train_in_ranks(recipe) == [0, 0]
    small.assert_same_run(undisturbed, tmp_path / "run")
    states = [
        json.loads((run / "checkpoint-7" / "trainer_state.json").read_text())
        for run in (undisturbed, tmp_path / "run")
    ]
    assert states[0]["quarantine"] == states[1]["quarantine"]
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["id"] for line in lines})
