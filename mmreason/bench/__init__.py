"""Benchmarks: each prompt's work done once against done for every row, both sides interleaved in one run.

`ratio` is the plain side's time over the shared side's: above 1 where sharing wins. Nothing here is asserted on time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmreason.bench.rollouts import rollout
from mmreason.bench.saved import memory
from mmreason.bench.steps import step
from mmreason.bench.supervised import sft
from mmreason.bench.work import Shape

__all__ = ["BENCHES", "Shape"]

BENCHES: dict[str, Callable[[Shape, int], dict[str, Any]]] = {
    "step": step,
    "rollout": rollout,
    "sft": sft,
    "memory": memory,
}
