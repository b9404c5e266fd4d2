"""What another engine sampled, corrected to the trainer's own policy: truncated or masked importance sampling.

An engine with kernels of its own gives other log-probabilities than the trainer for the same weights. The gradient of
tokens it sampled is that of the trainer's policy once each is weighted by rho = exp(trainer - engine).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MODES = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_MAX_LOG_RATIO = 60.0  # exp of it still is a float32


@dataclass(frozen=True)
class Correction:
    """How rho becomes a weight: cut off at the bounds (truncate), or 0 outside them (mask); none only measures.

    rho is a token's own, or of its whole completion: exp of the sum of its tokens' differences.

    Example: `Correction("token_truncate", high=2.0)` is TIS with C = 2.
    """

    mode: str = "token_truncate"  # one of MODES
    high: float | None = 2.0  # C_max; None: no bound
    low: float | None = None  # C_min


def correct(
    old: torch.Tensor, sampling: torch.Tensor, active: torch.Tensor, correction: Correction
) -> tuple[torch.Tensor | None, dict[str, float]]:
    """(weights of the policy term [B, K], or None where the mode is none; sums that metrics are made of).

    Args:
        old: the trainer's log-probabilities as it began with these rows, float [B, K], without gradient: under the
            weights that the engine had, or under newer ones where rollouts are stale.
        sampling: the engine's.
        active: bool [B, K], the sampled tokens that are learned; anything may stand elsewhere.

    Example: differences (ln 3, ln 0.5) with C_max 2 give the weights (2, 0.5) truncated and (0, 0.5) masked.
    """
    difference = torch.where(active, old - sampling, 0.0)
    summed = difference.sum(-1, keepdim=True).expand_as(difference)
    log_ratio = summed if correction.mode.startswith("sequence") else difference
    ratio = log_ratio.clamp(max=_MAX_LOG_RATIO).exp()
    outside = torch.zeros_like(active)
    if correction.high is not None:
        outside = outside | (ratio > correction.high)
    if correction.low is not None:
        outside = outside | (ratio < correction.low)
    distance, tokens = difference.abs(), float(active.sum())
    parts = {
        "sampling/difference": float(distance.sum()),
        "sampling/difference/max": float(distance.max()) if tokens else 0.0,
        "sampling/ratio": float((ratio * active).sum()),
        "sampling/ratio/max": float((ratio * active).max()) if tokens else 0.0,
        "sampling/outside": float((outside & active).sum()),
        "sampling/tokens": tokens,
    }
    if correction.mode == "none":
        return None, parts
    if correction.mode.endswith("mask"):
        return torch.where(outside, 0.0, ratio), parts
    return ratio.clamp(correction.low, correction.high) if _bounded(correction) else ratio, parts


def _bounded(correction: Correction) -> bool:
    return correction.low is not None or correction.high is not None


def correction_metrics(total: dict[str, float]) -> dict[str, float]:
    """TRL's names, of the sums over micro-batches and ranks; empty where nothing was measured."""
    tokens = total.get("sampling/tokens", 0.0)
    if not tokens:
        return {}
    return {
        "sampling/sampling_logp_difference/mean": total["sampling/difference"] / tokens,
        "sampling/sampling_logp_difference/max": total["sampling/difference/max"],
        "sampling/importance_sampling_ratio/mean": total["sampling/ratio"] / tokens,
        "sampling/importance_sampling_ratio/max": total["sampling/ratio/max"],
        "sampling/outside_ratio": total["sampling/outside"] / tokens,  # tokens that were truncated or masked
    }
