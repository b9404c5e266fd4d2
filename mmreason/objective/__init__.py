"""Objectives: advantages, token streams, ratios, token weights, aggregation; pure functions."""

from mmreason.objective.advantages import advantages
from mmreason.objective.aggregation import LOSS_TYPES, aggregation
from mmreason.objective.logprobs import CHUNK_ELEMENTS, Head, hidden_logprobs, token_logprobs
from mmreason.objective.policy import k3, policy_term
from mmreason.objective.samples import grpo_samples, sft_sample
from mmreason.objective.token_weights import (
    GroupWeights,
    token_weights_tw,
    tw_divergence,
    tw_grpo,
    tw_weights,
)

__all__ = [
    "CHUNK_ELEMENTS",
    "LOSS_TYPES",
    "GroupWeights",
    "Head",
    "advantages",
    "aggregation",
    "grpo_samples",
    "hidden_logprobs",
    "k3",
    "policy_term",
    "sft_sample",
    "token_logprobs",
    "token_weights_tw",
    "tw_divergence",
    "tw_grpo",
    "tw_weights",
]
