"""From rewards to advantages (GRPO, arXiv 2402.03300; without the scale, Dr. GRPO, arXiv 2503.20783)."""

from __future__ import annotations

import math
from collections.abc import Sequence

STD_OFFSET = 1e-4  # TRL's


def advantages(groups: Sequence[Sequence[float | None]], scale: str = "group") -> list[list[float]]:
    """(reward - group mean) / (std + 1e-4) for every trajectory of every group.

    `scale` says whose std, always with Bessel's correction: `group`; `batch`, of all rewards given (the
    caller gathers them over ranks); or `none`, no division. A trajectory whose reward is None takes no part
    in mean or std and gets 0. Groups may differ in size; where all rewards are equal every advantage is
    exactly 0.

    Example: `advantages([[1, 0, None]])` is about `[[0.70701, -0.70701, 0.0]]`, std being 0.70711.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale_rewards is {scale!r}; it may be group, batch or none")
    batch_std = _std([r for group in groups for r in group if r is not None])
    out = []
    for group in groups:
        known = [r for r in group if r is not None]
        if not known or max(known) == min(known):
            out.append([0.0] * len(group))
            continue
        mean = math.fsum(known) / len(known)
        divisor = 1.0 if scale == "none" else (_std(known) if scale == "group" else batch_std) + STD_OFFSET
        out.append([0.0 if r is None else (r - mean) / divisor for r in group])
    return out


def _std(values: Sequence[float]) -> float:
    """Standard deviation with n - 1; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
