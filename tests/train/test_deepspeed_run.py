"""Whole runs under ZeRO in two processes: the plain model that comes out, and a killed run that goes on to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmreason.train.run import train
from tests.train import small
from tests.train.engines import RELEASING
from tests.train.pictures import write_pictures
from tests.train.ranks import train_in_ranks

SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "free",
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
}
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "learning_rate": 1e-3,
    "max_steps": 4,
    "num_generations": 2,
    "num_iterations": 2,
    "beta": 0.04,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "reward_funcs": [small.REWARD],
    "save_steps": 1,  # between the two uses of a rollout, too
}
TOLERANCE = 1e-6  # as in test_deepspeed


def tree(out: Path, rows: Path, engine: str, **keys: Any) -> dict[str, Any]:
    """The recipe; `zero3` frees every parameter once a module has run, as large models do."""
    if engine == "zero3":
        path = rows.parent / "zero3.json"
        path.write_text(json.dumps({"zero_optimization": RELEASING}))
        engine = str(path)
    data = {"rows": {"path": str(rows)}, "one": {"path": str(rows), "limit": 2}}
    evaluation = {"data": ["one"], "max_completion_length": 4}
    keys = {"stages": [SFT, GRPO]} | keys
    return small.recipe(out, data=data, eval=evaluation, deepspeed=engine, **keys).model_dump()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("rows"), 9)


@pytest.fixture(scope="module")
def zero3(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under ZeRO-3 that nobody disturbs."""
    out = tmp_path_factory.mktemp("zero3") / "run"
    assert train_in_ranks(tree(out, rows, "zero3")) == [0, 0]
    return out


def test_the_model_folder_is_plain(zero3: Path) -> None:
    """Loaded by the class that transformers finds; no weight is missing, and it is the last stage's end."""
    model, info = AutoModelForImageTextToText.from_pretrained(zero3 / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    last = small.weights(zero3 / "stages" / "grpo")
    state = model.state_dict()
    assert last and all(torch.equal(state[name], tensor) for name, tensor in last.items())


def test_supervised_weights_are_those_of_one_process(
    zero3: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    plain = tree(tmp_path / "run", rows, "zero2", stages=[SFT | {"per_device_train_batch_size": 4}])
    train(small.Recipe.model_validate(plain | {"deepspeed": None}))
    one, two = small.weights(tmp_path / "run" / "stages" / "sft"), small.weights(zero3 / "stages" / "sft")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= TOLERANCE


@pytest.mark.slow
def test_rollouts_module_by_module_are_those_of_the_whole(zero3: Path, rows: Path, tmp_path: Path) -> None:
    """The policy's and the old log-probabilities too; completions are equal, weights but for the order of sums."""
    out = tmp_path / "run"
    assert train_in_ranks(tree(out, rows, "zero3", rollout={"gather": "modules", "max_rows": 3})) == [0, 0]
    assert [line["reward"] for line in small.metrics(out)[3:]] == [
        line["reward"] for line in small.metrics(zero3)[3:]
    ]
    one, two = (small.weights(run / "stages" / "grpo") for run in (zero3, out))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 5e-5


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 6])
def test_killed_and_resumed(step: int, zero3: Path, rows: Path, tmp_path: Path) -> None:
    """Once at the end of a stage, once between two uses of a rollout."""
    recipe = tree(tmp_path / "run", rows, "zero3")
    assert train_in_ranks(recipe, step=step)[0] == -signal.SIGKILL
    assert train_in_ranks(recipe) == [0, 0]
    small.assert_same_run(zero3, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2", "zero2_offload", "zero3_offload"])
@pytest.mark.parametrize("lora", [False, True])
def test_killed_and_resumed_everywhere(engine: str, lora: bool, rows: Path, tmp_path: Path) -> None:
    keys = {"model": {"assemble": small.ASSEMBLE, "use_peft": lora, "lora_r": 4}}
    assert train_in_ranks(tree(tmp_path / "whole", rows, engine, **keys)) == [0, 0]
    recipe = tree(tmp_path / "run", rows, engine, **keys)
    assert train_in_ranks(recipe, step=6)[0] == -signal.SIGKILL
    assert train_in_ranks(recipe) == [0, 0]
    small.assert_same_run(tmp_path / "whole", tmp_path / "run")
