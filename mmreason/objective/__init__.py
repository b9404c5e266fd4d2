"""Objectives: advantages, token streams, ratios, token weights, aggregation; pure functions."""

from mmreason.objective.advantages import advantages
from mmreason.objective.aggregation import LOSS_TYPES, aggregation
from mmreason.objective.correction import Correction, correct, correction_metrics
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
    "Correction",
    "LOSS_TYPES",
    "GroupWeights",
    "Head",
    "advantages",
    "aggregation",
    "correct",
    "correction_metrics",
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
