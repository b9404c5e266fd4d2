"""The policy loss (clipped ratio) and the KL estimate, per token; finite where a token does not count."""

from __future__ import annotations

import torch

_MAX_LOG_RATIO = 60.0  # exp of it still is a float32


def policy_term(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor | None,
    advantage_stream: torch.Tensor,
    eps_low: float,
    eps_high: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss per token, clip indicators per token), every tensor of one shape, commonly [B, L].

    The loss is PPO's -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), r = exp(logprobs - old_logprobs),
    with A from `advantage_stream`; eps_high above eps_low is DAPO's clip-higher (arXiv 2503.14476). Without
    `old_logprobs` the data are the policy's own and r is 1 with gradient. Where A is 0 the loss and its
    gradient are 0.

    The indicators are 0 or 1 under TRL's names (clip_ratio/low_mean, high_mean, region_mean), to be
    averaged over learned tokens. A token without advantage is never clipped.
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    # At prompt and padded positions the difference is arbitrary and exp may overflow: 0 x inf would be NaN.
    ratio = torch.exp(torch.where(advantage_stream != 0, logprobs - old, 0.0))
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    loss = -torch.minimum(ratio * advantage_stream, clipped * advantage_stream)
    low = (ratio.detach() < 1 - eps_low) & (advantage_stream < 0)
    high = (ratio.detach() > 1 + eps_high) & (advantage_stream > 0)
    indicators = {
        "clip_ratio/low_mean": low.float(),
        "clip_ratio/high_mean": high.float(),
        "clip_ratio/region_mean": (low | high).float(),
    }
    return loss, indicators


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Schulman's unbiased, non-negative KL(policy || reference) estimate exp(d) - d - 1, d = ref - policy.

    d is bounded by 60 nats from above, where float32 would overflow soon after.
    """
    difference = (ref_logprobs - logprobs).clamp(max=_MAX_LOG_RATIO)
    return torch.expm1(difference) - difference
