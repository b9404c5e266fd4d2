"""The policy term (clipped ratio) and the KL estimator, both per token, pure and finite."""

from __future__ import annotations

import torch


def policy_term(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantage_stream: torch.Tensor,
    eps_low: float,
    eps_high: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(term, clip counts), every tensor of one shape, commonly [B, L].

    `advantage_stream * term` is PPO's -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) with r = exp(logprobs -
    old_logprobs); eps_high above eps_low is DAPO's clip-higher (arXiv 2503.14476). Without `old_logprobs` the data
    are the policy's own and r is 1 with gradient.

    The counts carry TRL's names (clip_ratio/low_mean, high_mean, region_mean): sums over tokens, to be divided by
    the number of learned tokens. A token without advantage is never clipped.
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    positive = advantage_stream >= 0
    term = -torch.where(positive, torch.minimum(ratio, clipped), torch.maximum(ratio, clipped))
    with torch.no_grad():
        low = (ratio < 1 - eps_low) & (advantage_stream < 0)
        high = (ratio > 1 + eps_high) & (advantage_stream > 0)
        counts = {
            "clip_ratio/low_mean": low.sum(),
            "clip_ratio/high_mean": high.sum(),
            "clip_ratio/region_mean": (low | high).sum(),
        }
    return term, counts


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's unbiased, non-negative KL(policy || reference) estimate exp(d) - d - 1, d = ref - policy."""
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference
