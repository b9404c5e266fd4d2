"""Rollouts while every rank has a part of each weight only: a module's weights come when it runs, on all ranks at once.

So all ranks run the same modules equally often: as many batches, with the same kinds of media, until the last row of
any rank has ended. Prompts are not shared, as in the plain rollout, whose completions these are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mmreason.model.family import Family, out_of_training
from mmreason.render import Renderer
from mmreason.rollout.budget import fixed_batches, out_of_memory, rows_of
from mmreason.rollout.generate import decode_rows
from mmreason.rollout.sampling import SamplingParams, fresh_seeds
from mmreason.types import Rendered, Trajectory


def generate(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
    seeds: torch.Tensor | None = None,
    *,
    largest: Callable[[int], int],
    beside: Callable[[Sequence[Rendered]], list[Rendered]],
) -> list[list[Trajectory]]:
    """`count` completions for each of this rank's prompts, in their order; all ranks call it together.

    Args:
        seeds: as in the plain rollout.
        largest: the largest of all ranks' numbers.
        beside: rows to compute beside a batch's, so that it shows what any rank's batch shows; at least one where it
            has none.
    """
    seeds = fresh_seeds(len(prompts), count, params) if seeds is None else seeds.view(len(prompts), count)
    done: dict[tuple[int, int], Trajectory] = {}
    with out_of_training(model):
        batches = fixed_batches(model, [len(p) for p in prompts], count, params)
        rounds = largest(len(batches))
        for batch in [*batches, *[[]] * (rounds - len(batches))]:
            rows = list(rows_of(batch))
            shown = [prompts[i] for i, _ in rows]
            idle = beside(shown)
            chosen = torch.tensor([int(seeds[i, n]) for i, n in rows] + [0] * len(idle))
            with _named(len(rows), max((len(p) for p in shown), default=0), params):
                completed = decode_rows(
                    model, family, renderer, [*shown, *idle], params, chosen, idle=len(idle), in_step=True
                )
            done.update(zip(rows, completed, strict=True))
    return [[done[i, n] for n in range(count)] for i in range(len(prompts))]


@contextmanager
def _named(rows: int, longest: int, params: SamplingParams) -> Iterator[None]:
    """Say what helps where memory runs out: no batch is tried again in halves, as the other ranks are inside it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory in the rollout of {rows} rows, prompts of up to {longest} tokens and up to "
            f"{params.max_new_tokens} new ones, each row with its own prompt; lower rollout.max_rows or set "
            "rollout.kv_cache_memory_bytes, max_completion_length or max_prompt_length"
        ) from error
