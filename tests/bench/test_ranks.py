"""Tokens a second of one process and of two: measured of the steps that count."""

from __future__ import annotations

import pytest

from tests.bench.shapes import SMALL
from tests.benchmarks.ranks import FIRST, measured


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "deepspeed"), [(1, None), (2, "zero2")])
def test_a_run_is_measured(processes: int, deepspeed: str | None) -> None:
    found = measured(SMALL, processes, FIRST + 3, deepspeed)
    assert found["steps"] == 3 and len(found["peak_rss"]) == processes
    assert all(1e8 < peak < 4e9 for peak in found["peak_rss"])
    prompt = SMALL.image_tokens + 20  # once for all completions
    a_step = processes * (prompt + SMALL.group * SMALL.new_tokens)
    # the median step's tokens over its seconds, and all steps' over processor seconds
    assert found["tokens_a_second"] * found["step_s"] == pytest.approx(a_step, rel=0.4)
    assert 0 < found["tokens_a_cpu_second"] < 1e6
