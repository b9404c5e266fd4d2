"""`bench step`: a whole GRPO step, rollout and update, with `shared_prefix` off and auto."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmreason.bench.measure import (
    LinearFlops,
    compared,
    environment,
    interleaved,
    kept_for_backward,
    peak_rss,
)
from mmreason.bench.work import Shape, context_of, grpo_recipe, workplace
from mmreason.schema import GRPOStage
from mmreason.train.grpo import GRPO
from mmreason.train.prepare import seed_everything
from mmreason.train.run import make_trainer
from mmreason.train.step import Trainer, train_step

SIDES = {"plain": "off", "shared": "auto"}


def step(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{plain_s, shared_s, ratio, flop_ratio, saved_bytes_ratio, ...}` of the run's own rollout, reward and update."""
    with workplace(shape) as folder:
        runs = {name: prepared(shape, folder, mode) for name, mode in SIDES.items()}
        sides = {name: _steps(*run) for name, run in runs.items()}
        counts, saved, last = {}, {}, {}
        for name, (_, trainer) in runs.items():
            weights = list(trainer.model.parameters())
            with LinearFlops() as count, kept_for_backward(weights) as kept:
                last[name] = sides[name]()
            counts[name], saved[name] = count.total, kept()
        taken = interleaved(sides, rounds)
    return {
        "bench": "step",
        **compared(taken, "plain", "shared"),
        "flop_ratio": counts["plain"] / counts["shared"],
        "saved_bytes": saved,
        "saved_bytes_ratio": saved["plain"] / saved["shared"],
        "completion_tokens": {name: metrics["tokens/learned"] for name, metrics in last.items()},
        "shape": shape.as_dict(),
        "peak_rss_bytes": peak_rss(),
        "environment": environment(),
    }


def prepared(shape: Shape, folder: Path, shared_prefix: str) -> tuple[GRPO, Trainer]:
    """The method and the trainer of a run that starts from the workplace's model."""
    recipe = grpo_recipe(shape, folder, shared_prefix)
    context = context_of(recipe)
    stage = recipe.stages[0]
    assert isinstance(stage, GRPOStage)
    method = GRPO(context, stage, 1000, lambda: None)
    method.trainer = make_trainer(context, stage)
    seed_everything(recipe.seed)
    return method, method.trainer


def grpo_step(shape: Shape, folder: Path, shared_prefix: str) -> Callable[[], dict[str, float]]:
    """A call that does the next GRPO step of such a run, from prompts to new weights; returns its metrics."""
    return _steps(*prepared(shape, folder, shared_prefix))


def _steps(method: GRPO, trainer: Trainer) -> Callable[[], dict[str, float]]:
    numbers = itertools.count(1)

    def go() -> dict[str, float]:
        with method.context.encoding():
            batch = method.collect(0.0, next(numbers))
        with method.context.encoding():
            return train_step(trainer, batch.rows, batch.objective, 0.0)

    return go
