"""A run goes on in another number of processes: two, then one, then two, to the parameters of two all along."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.train import small
from tests.train.engines import RELEASING
from tests.train.pictures import write_pictures
from tests.train.ranks import train_in_ranks

SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "free",
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "save_steps": 1,
}
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "learning_rate": 1e-3,
    "max_steps": 3,
    "num_generations": 2,
    "num_iterations": 3,  # one rollout, each use of which is in another number of processes
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "reward_funcs": [small.REWARD],
    "save_steps": 1,
}
STAGES = {
    "sgd": SFT | {"optimizer": "sgd", "learning_rate": 0.1},
    "adamw": SFT,
    "grpo": GRPO,
}
TOLERANCE = {"sgd": 1e-6, "adamw": 5e-5, "grpo": 5e-5}  # as in test_deepspeed
ENGINES = (None, "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


def tree(out: Path, rows: Path, engine: str | None, stage: dict[str, Any], world: int) -> dict[str, Any]:
    if engine == "zero3":
        path = rows.parent / "zero3.json"
        path.write_text(json.dumps({"zero_optimization": RELEASING}))
        engine = str(path)
    share = {"gradient_accumulation_steps": 2 // world, "evaluate": False}
    data = {"rows": {"path": str(rows)}}
    model = {"assemble": small.ASSEMBLE, "vision_learning_rate": 2e-3}
    return small.recipe(
        out, data=data, eval={"data": []}, model=model, deepspeed=engine, stages=[stage | share]
    ).model_dump()


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_one_two(name: str, engine: str | None, tmp_path: Path) -> None:
    rows = write_pictures(tmp_path, 9)
    stage = STAGES[name]
    assert train_in_ranks(tree(tmp_path / "whole", rows, engine, stage, 2)) == [0, 0]
    two, one = (tree(tmp_path / "run", rows, engine, stage, world) for world in (2, 1))
    last = stage["max_steps"]
    assert train_in_ranks(two, step=last - 1)[0] == -signal.SIGKILL
    assert train_in_ranks(one, world=1, step=last) == [-signal.SIGKILL]
    assert train_in_ranks(two) == [0, 0]
    found, wanted = (small.weights(tmp_path / run / "stages" / stage["name"]) for run in ("run", "whole"))
    assert found.keys() == wanted.keys()
    assert max(float((found[key] - wanted[key]).abs().max()) for key in found) <= TOLERANCE[name]
    lines = small.metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, last + 1))
