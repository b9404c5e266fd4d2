"""How token losses become one number: token weights, and a share of one global denominator, per row."""

from __future__ import annotations

import torch

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")


def aggregation(
    sampled: torch.Tensor, loss_type: str, max_completion_length: int
) -> tuple[torch.Tensor, float]:
    """(weights [T], count) of one row, from its mask of learned tokens, bool [T].

    The loss is sum(weights x token loss) / sum(count), both over all rows of all ranks:

    - `dapo`: weight 1, count = tokens. The mean over tokens (arXiv 2503.14476).
    - `grpo`: weight 1/tokens, count 1. The mean over rows of each row's mean (arXiv 2402.03300).
    - `dr_grpo`: weight 1/max_completion_length, count 1 (arXiv 2503.20783). Its denominator is the number of rows:
      dividing by the sum of these weights would cancel the constant and give `dapo`.

    A row without learned tokens (truncated and masked) has weight and count 0 under each of them: it is not
    in the mean. TRL counts such rows.
    """
    tokens = int(sampled.sum())
    mask = sampled.to(torch.float32)
    if loss_type == "dapo":
        return mask, float(tokens)
    if loss_type == "grpo":
        return mask / max(tokens, 1), float(tokens > 0)
    if loss_type == "dr_grpo":
        return mask / max_completion_length, float(tokens > 0)
    raise ValueError(f"loss_type is {loss_type!r}; it may be one of {list(LOSS_TYPES)}")
