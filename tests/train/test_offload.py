"""Activations in the CPU's memory: the same gradients to the bit, and as many bytes as were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmreason.train.offload import SMALL, from_cpu, offloaded, to_cpu
from tests.train import engines
from tests.train.engines import Case, difference


def test_bytes_are_counted_by_hand_and_gradients_are_the_same() -> None:
    """Two layers on the same rows, a product of their outputs: the rows go once, weights and what is small stay."""
    torch.manual_seed(0)
    one, two = nn.Linear(256, 256, bias=False), nn.Linear(256, 256, bias=False)
    model = nn.ModuleList([one, two])
    rows = torch.randn(SMALL // 256, 256)
    few = torch.randn(2, 256)

    def loss() -> torch.Tensor:
        return (one(rows) * two(rows)).sum() + one(few).sin().sum()

    loss().backward()
    wanted = [p.grad for p in model.parameters()]
    model.zero_grad()
    with offloaded(model) as moved:
        out = loss()
    assert moved.total == 3 * SMALL * 4  # the rows, and both outputs
    out.backward()
    assert all(torch.equal(p.grad, w) for p, w in zip(model.parameters(), wanted, strict=True))  # type: ignore[arg-type]


def test_a_tensor_that_is_overwritten_after_it_went_comes_back_as_it_was() -> None:
    """Memory that another tensor has by now, or new numbers in the same one, are not taken for what went."""
    x = torch.ones(SMALL, requires_grad=True)
    with offloaded(nn.Linear(1, 1)) as moved:
        total = torch.zeros(())
        for factor in range(1, 5):
            y = x * factor
            total = total + (y * y).sum()  # y is gone by the next round
            del y
    total.backward()
    assert moved.total >= 4 * SMALL * 4
    assert torch.equal(x.grad, torch.full_like(x, sum(2.0 * f * f for f in range(1, 5))))  # type: ignore[arg-type]
    kept = to_cpu(x.detach())
    assert from_cpu(kept).data_ptr() == kept[1].data_ptr() != x.data_ptr()


@pytest.mark.parametrize("rows", ["sft", "grpo"])
def test_a_step_is_the_same(rows: str, assembled_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmreason.train.offload.SMALL", 1)
    plain = engines.alone(assembled_folder, Case("plain", rows))
    assert difference(plain, engines.alone(assembled_folder, Case("plain", rows, offload=True))) == 0.0
