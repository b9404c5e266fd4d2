"""TW-GRPO's token weights (arXiv 2505.24718): positions where a group's distributions disagree weigh more.

Completions of one prompt are compared position by position, whatever they said before. `corrected`, the
default, compares only the rows still writing at a position. `released` is the published code: a finished
row counts as the uniform distribution, so that the largest weights fall behind the end of the shortest
completion. The released code also lets a gradient through the weights; here they never carry one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

_CLAMP = 11.0


@dataclass(frozen=True)
class GroupWeights:
    """A method's token weights in two steps, so that a group's logits are needed some positions at a time only.

    Example: `tw_grpo(1.7)`; `GroupWeights(lambda logits, mask: logits.new_zeros(mask.shape[1]), lambda d, mask: mask)`
    weighs nothing.
    """

    divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits [G, c, V], mask [G, c] -> [c]
    weights: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # divergence [C], mask [G, C] -> [G, C]


def tw_grpo(alpha_max: float = 1.7, form: str = "corrected", chunk: int = 64) -> GroupWeights:
    """TW-GRPO's weights; `chunk` positions are widened to float32 at a time."""
    return GroupWeights(
        partial(tw_divergence, form=form, chunk=chunk), partial(tw_weights, alpha_max=alpha_max, form=form)
    )


@torch.no_grad()
def tw_divergence(
    logits: torch.Tensor, mask: torch.Tensor, form: str = "corrected", chunk: int | None = None
) -> torch.Tensor:
    """Disagreement D [C] of G rows at each of C positions, float32.

    With L = log softmax(`logits`) [G, C, V] (log-probabilities may be given as well) and c the mean of L
    over rows, D is the mean over rows of sum over the vocabulary of exp(d) - d - 1, d = clamp(c - L, -11,
    11). The sum is not weighted by probability, as in the released code. `mask` [G, C] marks the tokens
    that were written. `chunk` positions are worked at a time; the result does not depend on it.
    """
    if form not in ("corrected", "released"):
        raise ValueError(f"token_weight.form is {form!r}; it may be corrected or released")
    size = chunk or max(logits.shape[1], 1)
    pieces = [
        _divergence(part, active, form)
        for part, active in zip(logits.split(size, dim=1), mask.split(size, dim=1), strict=True)
    ]
    return torch.cat(pieces)


def _divergence(logits: torch.Tensor, mask: torch.Tensor, form: str) -> torch.Tensor:
    active = mask.bool()
    logp = torch.log_softmax(logits.float(), dim=-1)  # [G, c, V]
    if form == "released":
        logp = logp.masked_fill(~active[..., None], -math.log(logp.shape[-1]))
        active = torch.ones_like(active)
    rows = active.sum(0).clamp(min=1)  # [c]
    logp = logp.clamp(min=torch.finfo(torch.float32).min / 1e4)  # a banned token's -inf must not become NaN
    centre = (logp * active[..., None]).sum(0) / rows[:, None]  # [c, V]
    difference = (centre - logp).clamp(-_CLAMP, _CLAMP)
    per_row = (torch.expm1(difference) - difference).sum(-1)  # [G, c]
    return (per_row * active).sum(0) / rows


@torch.no_grad()
def token_weights_tw(
    logits: torch.Tensor,
    mask: torch.Tensor,
    alpha_max: float = 1.7,
    form: str = "corrected",
    chunk: int | None = None,
) -> torch.Tensor:
    """Weights [G, C] in [1, alpha_max] where `mask` [G, C] is set, 0 elsewhere; `logits` [G, C, V] as above.

    w = 1 + (alpha_max - 1) * minmax(D). `corrected`: minmax over the positions with at least two rows, w =
    1 at the others. `released`: minmax over all positions.

    Example: two rows over two tokens that agree, disagree (.9/.1 against .1/.9), agree: D = (0, 1.33333, 0)
    and w = (1, 1.7, 1).
    """
    return tw_weights(tw_divergence(logits, mask, form, chunk), mask, alpha_max, form)


@torch.no_grad()
def tw_weights(
    divergence: torch.Tensor, mask: torch.Tensor, alpha_max: float = 1.7, form: str = "corrected"
) -> torch.Tensor:
    """`token_weights_tw` of a divergence [C] that is known already."""
    compared = (
        mask.bool().sum(0) >= 2 if form == "corrected" else torch.ones_like(divergence, dtype=torch.bool)
    )
    weights = torch.ones_like(divergence)
    if compared.any():
        low, high = divergence[compared].min(), divergence[compared].max()
        spread = (divergence - low) / (high - low + 1e-8)
        weights = torch.where(compared, 1 + (alpha_max - 1) * spread, weights)
    return weights * mask.to(weights.dtype)
