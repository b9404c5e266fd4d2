"""Graded credit for numbers, the regression reward of Video-R1 (arXiv 2503.21776): nearer is more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmreason.rewards.answer import parse_answer, solution_text
from mmreason.rewards.verify import parse_number
from mmreason.types import Group


def numeric_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """1 - min(1, |answer - truth| / |truth|) on numeric questions; None on the others.

    Errors up to `tolerance` (a share of the truth, default 0) earn the full point. A truth of 0 must be
    hit. A numeric question answered without a number earns 0.
    """
    truth = solution_text(group.sample)
    wanted = parse_number(truth) if truth is not None else None
    if group.sample.problem_type != "numeric" or wanted is None:
        return [None] * len(group.trajectories)
    out: list[float | None] = []
    for trajectory in group.trajectories:
        given = parse_number(parse_answer(trajectory.text) or "")
        if given is None or wanted == 0:
            out.append(float(given == wanted))
            continue
        error = float(abs(given - wanted) / abs(wanted))
        out.append(1.0 if error <= args.get("tolerance", 0.0) else 1.0 - min(1.0, error))
    return out
