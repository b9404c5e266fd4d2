"""A program: two steps of a recipe's only stage, and the most memory that they took above what there was before.

`python -m tests.memory.measured RECIPE.json` prints `{"allocated", "live", "resident"}`: bytes by the book of torch's
own allocator, of live tensors as `LiveBytes` counts them, and of the process. Model and optimizer are made meanwhile.
"""

from __future__ import annotations

import copy
import json
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from mmreason.memory import LiveBytes
from mmreason.schema import GRPOStage, Recipe, SFTStage
from mmreason.train.grpo import GRPO
from mmreason.train.metrics import MemoryWatch
from mmreason.train.prepare import load_initial, prepare
from mmreason.train.run import make_trainer
from mmreason.train.sft import SFT
from mmreason.train.step import train_step

STEPS = 2


def steps(recipe: Recipe) -> None:
    """The stage from its initial weights on, without evaluation and saving."""
    context = prepare(recipe, Path(recipe.output_dir), None)
    # every completion is written to its end, as predicted
    context.renderer.placeholder_ids = (*context.renderer.placeholder_ids, *context.renderer.eos_ids)
    (stage,) = recipe.stages
    load_initial(context, stage)
    method: SFT | GRPO
    if isinstance(stage, GRPOStage):
        method = GRPO(
            context, stage, STEPS, lambda: copy.deepcopy(context.model).requires_grad_(False).eval()
        )
    else:
        assert isinstance(stage, SFTStage)
        method = SFT(context, stage)
    trainer = make_trainer(context, stage)
    if isinstance(method, GRPO):
        method.trainer = trainer
    for number in range(1, STEPS + 1):
        with context.encoding():
            batch = method.collect(0.0, number)
        with context.encoding():
            train_step(trainer, batch.rows, batch.objective, 0.0)


def measured(recipe: Recipe) -> dict[str, int]:
    """What the module's docstring says."""
    before = psutil.Process().memory_info().rss
    watch = MemoryWatch(0.02)
    told: Any
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as told,
        LiveBytes() as live,
    ):
        steps(recipe)
    watch.close()
    found = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    book = [e.nbytes() for e in sorted(found, key=lambda e: e.start_ns())]
    return {"allocated": max(accumulate(book)), "live": live.peak, "resident": watch.peak - before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(Recipe.model_validate(json.loads(Path(sys.argv[1]).read_text())))))
