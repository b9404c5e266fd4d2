"""Every built-in reward by the name a recipe uses: a new one is a file in this room and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmreason.rewards.format import format_reward
from mmreason.rewards.numeric import numeric_reward
from mmreason.rewards.shaping import constant_reward, overlong_reward
from mmreason.rewards.soft import blend_reward, soft_reward
from mmreason.rewards.verify import exact_reward
from mmreason.types import Group

RewardFn = Callable[[Group, Mapping[str, Any]], list[float | None]]

REWARDS: dict[str, RewardFn] = {
    "exact": exact_reward,
    "subset": soft_reward("subset"),
    "jaccard": soft_reward("jaccard"),
    "f1": soft_reward("f1"),
    "blend": blend_reward,
    "numeric": numeric_reward,
    "format": format_reward,
    "overlong": overlong_reward,
    "constant": constant_reward,
}
# The keys of a recipe's reward_args that each reward reads; the others read none.
REWARD_ARGS: dict[str, tuple[str, ...]] = {
    "blend": ("soft", "soft_weight", "exact_weight"),
    "numeric": ("tolerance",),
    "overlong": ("max_length", "cache"),
    "constant": ("value",),
}
