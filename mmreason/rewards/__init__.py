"""Rewards: the exact verifier, then shaping terms, one idea per file; `None` is "does not apply"."""

from mmreason.rewards.answer import answer_set, normalise, parse_answer, think_body, uses_letters
from mmreason.rewards.format import strict_format
from mmreason.rewards.registry import REWARD_ARGS, REWARDS, RewardFn
from mmreason.rewards.score import (
    call_user_function,
    reward_labels,
    reward_problems,
    score_group,
    user_columns,
    user_rewards,
)
from mmreason.rewards.soft import SOFT, hedge, soft_score
from mmreason.rewards.verify import parse_number, verify

__all__ = [
    "REWARDS",
    "REWARD_ARGS",
    "SOFT",
    "RewardFn",
    "answer_set",
    "call_user_function",
    "hedge",
    "normalise",
    "parse_answer",
    "parse_number",
    "reward_labels",
    "reward_problems",
    "score_group",
    "soft_score",
    "strict_format",
    "think_body",
    "user_columns",
    "user_rewards",
    "uses_letters",
    "verify",
]
