"""The one loss: streams times terms, summed. Nothing here knows which algorithm wrote the streams."""

from __future__ import annotations

import torch

from mmreason.objective.policy import k3, policy_term
from mmreason.types import MicroBatch


def streams_loss(
    batch: MicroBatch,
    logprobs: torch.Tensor,
    *,
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    token_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss sum, metric sums) of a micro-batch; all tensors [B, L] aligned with ids, entry t speaking of ids[t].

    sum over tokens of aggregation x (rl x token_weights x policy term + kl x k3 + ce x nll). Token weights touch the
    policy term alone. The caller divides by the global sum of `count`; the metric sums (clip counts, `kl`, `tokens`)
    by the global `tokens`.
    """
    term, metrics = policy_term(logprobs, batch.old_logprobs, batch.rl, eps_low, eps_high)
    policy = batch.rl * term
    if token_weights is not None:
        policy = policy * token_weights.detach()
    token_loss = policy - batch.ce * logprobs
    active = batch.aggregation > 0
    metrics["tokens"] = active.sum()
    if batch.ref_logprobs is not None:
        divergence = k3(logprobs, batch.ref_logprobs)
        token_loss = token_loss + batch.kl * divergence
        metrics["kl"] = divergence.detach()[active].sum()
    else:
        assert not bool((batch.kl > 0).any()), "a KL weight without reference log-probabilities"
    # where, not a product: 0 x inf at a padded or prompt position would poison the sum
    return torch.where(active, batch.aggregation * token_loss, 0.0).sum(), metrics
