"""Rewards that do not look at the answer: length, and the constant that serves as a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.types import Group


def overlong_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """DAPO's soft overlong punishment (arXiv 2503.14476): 0 up to max_length - cache, then linearly down to -1.

    `max_length` and `cache` are token counts and required; with cache 0 the punishment is a step at
    max_length.
    """
    for name in ("max_length", "cache"):
        if not isinstance(args.get(name), int):
            raise ValueError(f"reward_args.overlong.{name} is {args.get(name)!r}; give a number of tokens")
    longest, cache = args["max_length"], args["cache"]
    out: list[float | None] = []
    for length in (len(t) for t in group.trajectories):
        if length <= longest - cache:
            out.append(0.0)
        else:
            out.append((longest - cache - length) / cache if length <= longest else -1.0)
    return out


def constant_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """The same `value` (default 1) for everyone: the control that must teach nothing."""
    return [float(args.get("value", 1.0))] * len(group.trajectories)
