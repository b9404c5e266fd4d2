"""The growth of a step with the number of processes, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmreason.bench.constants import constants_here
from mmreason.bench.scaling import (
    CASES,
    H100,
    Machine,
    Work,
    decode_s,
    exchange_s,
    growth,
    main,
    prefill_s,
    ring_s,
    simulate,
    training_s,
)

MACHINE = Machine(flops=1000.0, reads=100.0, near=50.0, far=5.0, per_node=4, latency=0.5)
WORK = Work(
    weights=10,
    learning=4,
    width=2,
    prompt=30,
    lengths=(3, 3),
    groups=2,
    group=2,
    kv_bytes=1,
    micro_batches=3,
    recomputed=False,
)


def test_parts_are_hand_computed() -> None:
    assert prefill_s(WORK, MACHINE) == pytest.approx(2 * 10 * 30 * 2 / 1000)
    # three tokens: each reads 20 bytes of weights and 60 of prompts; four rows have 0, 1 and 2 tokens behind them
    assert float(decode_s(WORK, MACHINE, torch.tensor([3, 3, 3, 3]))) == pytest.approx((3 * 80 + 4 * 3) / 100)
    # a row that ends after one token has read none of its own
    assert float(decode_s(WORK, MACHINE, torch.tensor([3, 1]))) == pytest.approx((3 * 80 + 3) / 100)
    assert training_s(WORK, MACHINE, 7) == pytest.approx((4 * 10 + 2 * 4) * 7 / 1000)
    assert training_s(replace(WORK, recomputed=True), MACHINE, 7) == pytest.approx(
        (6 * 10 + 2 * 4) * 7 / 1000
    )


def test_a_ring_is_hand_computed() -> None:
    assert ring_s(100, 1, MACHINE) == 0.0
    assert ring_s(100, 4, MACHINE) == pytest.approx(3 * (25 / 50 + 0.5))
    assert ring_s(100, 5, MACHINE) == pytest.approx(4 * (20 / 5 + 0.5))  # the slowest link is between nodes
    gradients, weights = ring_s(8, 4, MACHINE), ring_s(20, 4, MACHINE)
    assert exchange_s(WORK, MACHINE, 4, zero3=False) == pytest.approx(4 * gradients)
    assert exchange_s(WORK, MACHINE, 4, zero3=True) == pytest.approx(3 * gradients + 7 * weights)


def test_equal_lengths_are_the_closed_form() -> None:
    """Nobody waits for anybody: only the exchange costs."""
    alone, four = growth(WORK, MACHINE, [1, 4])
    rollout = prefill_s(WORK, MACHINE) + 252 / 100
    training = training_s(WORK, MACHINE, 2 * 30 + 4 * 3)
    assert (alone.rollout_s, alone.training_s, alone.exchange_s) == pytest.approx((rollout, training, 0.0))
    assert alone.tokens_a_second == pytest.approx(12 / (rollout + training)) and alone.efficiency == 1.0
    assert four.efficiency == pytest.approx((rollout + training) / (rollout + training + four.exchange_s))


def test_the_wait_for_the_longest_is_its_expectation() -> None:
    """One row each, 1 to 99 tokens: of n processes the longest has 100 n / (n + 1) in the mean, nearly."""
    one = replace(WORK, lengths=(1, 99), groups=1, group=1, kv_bytes=0, prompt=0)
    fast = replace(MACHINE, near=1e12, latency=0.0, per_node=64)
    for n in (1, 8, 64):
        step = simulate(one, fast, n)
        assert step.rollout_s * 100 / 20 == pytest.approx(100 * n / (n + 1), rel=0.1)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--counts", "1", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 2 * len(CASES) and f'"flops": {H100.flops}' in lines[0]
    efficiency = [float(line.split("|")[-2]) for line in lines[3:]]
    assert efficiency[::2] == [1.0] * len(CASES) and all(0 < e < 1 for e in efficiency[1::2])


@pytest.mark.slow
def test_this_machine_has_constants() -> None:
    machine = Machine(**constants_here())  # type: ignore[arg-type]
    assert machine.flops > 1e8 and machine.reads > 1e7 and machine.near > 1e6 and 0 < machine.latency < 1
