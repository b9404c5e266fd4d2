"""`bench rollout`: prompts prefilled once against once for each completion; and what dropping ended rows is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mmreason.bench.measure import LinearFlops, compared, environment, interleaved, log_uniform, peak_rss
from mmreason.bench.work import Shape, context_of, grpo_recipe, workplace
from mmreason.rollout import forked, generate
from mmreason.rollout.sampling import SamplingParams, row_seeds
from mmreason.train.context import Context
from mmreason.types import Rendered

RAGGED_GROUPS, SHORTEST, LONGEST = 16, 8, 256
RAGGED_IMAGE_TOKENS = 64


def rollout(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{plain_s, shared_s, ratio, flop_ratio, dropping: {kept_s, dropped_s, ratio}, ...}`.

    `dropping` is the forked engine with and without dropping rows that ended: 16 groups whose completions end after 8
    to 256 tokens, spread log-uniformly.
    """
    with workplace(shape) as folder:
        context = context_of(grpo_recipe(shape, folder, "auto"))
        sides = _sides(context, shape)
        counts = {}
        for name, side in sides.items():
            with LinearFlops() as count:
                side()
            counts[name] = count.total
        taken = interleaved(sides, rounds)
    ragged = replace(shape, prompts=RAGGED_GROUPS, image_tokens=min(RAGGED_IMAGE_TOKENS, shape.image_tokens))
    return {
        "bench": "rollout",
        **compared(taken, "plain", "shared"),
        "flop_ratio": counts["plain"] / counts["shared"],
        "dropping": _dropping(ragged, rounds),
        "shape": shape.as_dict(),
        "peak_rss_bytes": peak_rss(),
        "environment": environment(),
    }


def _sides(context: Context, shape: Shape) -> dict[str, Callable[[], Any]]:
    params = SamplingParams(shape.new_tokens)
    prompts = _prompts(context, shape)
    seeds = row_seeds(shape.prompts * shape.group)
    arguments: Any = (context.model, context.family, context.renderer, prompts, shape.group, params, seeds)
    return {
        "plain": lambda: generate.generate(*arguments),
        "shared": lambda: forked.generate(*arguments),
    }


def _dropping(shape: Shape, rounds: int) -> dict[str, Any]:
    with workplace(shape) as folder:
        context = context_of(grpo_recipe(shape, folder, "auto"))
        prompts = _prompts(context, shape)
        limits = log_uniform(shape.prompts * shape.group, SHORTEST, LONGEST)
        seeds = row_seeds(len(limits))

        def side(drop: bool) -> Callable[[], Any]:
            params = SamplingParams(int(limits.max()), drop_finished=drop)
            model, family, renderer = context.model, context.family, context.renderer
            return lambda: forked.generate(
                model, family, renderer, prompts, shape.group, params, seeds, limits
            )

        sides = {"kept": side(False), "dropped": side(True)}
        for first in sides.values():
            first()  # the first time is no measure
        taken = interleaved(sides, rounds)
    lengths = limits.tolist()
    return compared(taken, "kept", "dropped") | {
        "groups": shape.prompts,
        "rows": len(lengths),
        "lengths": {"least": min(lengths), "mean": sum(lengths) / len(lengths), "most": max(lengths)},
        "image_tokens": shape.image_tokens,
    }


def _prompts(context: Context, shape: Shape) -> list[Rendered]:
    rendered = [context.feed.prompt(sample) for sample in context.sources["rows"][: shape.prompts]]
    return [prompt for prompt in rendered if prompt is not None]
