"""A pretask in two processes is one of twice the batch, also where a rank's rows show no film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.train.distributed import DDPBackend
from mmreason.train.run import train
from tests.train import small
from tests.train.ranks import train_in_ranks

TOLERANCE = 1e-6  # fp32, SGD
PRETASK: dict[str, Any] = {
    "type": "pretask",
    "name": "perceive",
    "data": ["warm", "films"],
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 0.01,
    "warmup_ratio": 0.0,
    "max_steps": 4,
    "save_steps": 2,
}


def recipe(out: Path, batch: int) -> dict[str, Any]:
    data = {
        "warm": {"world": "image", "count": 12, "seed": 1},
        "films": {"world": "video", "count": 4, "seed": 2},
    }
    stage = PRETASK | {"per_device_train_batch_size": batch}
    model = {"assemble": small.ASSEMBLE | {"image_size": 64, "spatial_merge": 2}}
    return small.recipe(out, data=data, stages=[stage], model=model, eval={"data": []}).model_dump()


def test_two_ranks_are_one_of_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    assert train_in_ranks(recipe(tmp_path / "two", 2)) == [0, 0]
    train(small.Recipe.model_validate(recipe(tmp_path / "one", 4)))
    one, two = (small.weights(tmp_path / name / "model") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= TOLERANCE
    lines = [small.metrics(tmp_path / name) for name in ("one", "two")]
    for alone, together in zip(*lines, strict=True):
        assert alone.keys() == together.keys()
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["rows"] == alone["rows"]
        right = [key for key in alone if key.startswith("pretask/")]
        assert right and all(together[key] == pytest.approx(alone[key], abs=0.01) for key in right)


def test_what_no_rank_has_used_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient of zero would let weight decay shrink it, and the LLM does not run in a pretask."""
    used, idle = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.ModuleList([used, idle])
    used(torch.ones(1, 2)).sum().backward()
    backend = DDPBackend.__new__(DDPBackend)
    backend.device = torch.device("cpu")
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    backend.sum_gradients(model)
    assert idle.weight.grad is None
    torch.testing.assert_close(used.weight.grad, torch.full((2, 2), 2.0))
