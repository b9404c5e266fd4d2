"""Padded rows that hold several questions on the same media: which token sees which, and where each stands.

A row's segments (`Rendered.segments`) are 0 for the shared beginning and 1, 2 ... for what goes on from it. Every
segment sees the beginning and itself, and stands right behind the beginning, so that each question's logits and
gradients are those of a row of its own. Shapes: B rows, L tokens; -1 marks padding.
"""

from __future__ import annotations

import torch


def segment_mask(segments: torch.Tensor) -> torch.Tensor:
    """Additive attention mask, float32 [B, 1, L, L]: 0 where a query may look, the lowest number elsewhere."""
    length = segments.shape[1]
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = causal & ((key == 0) | (key == query))  # padding sees padding: a row of nothing would be NaN
    mask = torch.zeros(seen.shape)
    return mask.masked_fill_(~seen, torch.finfo(mask.dtype).min).unsqueeze(1)


def segment_positions(segments: torch.Tensor) -> torch.Tensor:
    """Positions, int64 [B, L]: the beginning counts from 0, every segment goes on from the beginning's end.

    Example: segments [0, 0, 1, 1, 2, 2] stand at [0, 1, 2, 3, 2, 3].
    """
    index = torch.arange(segments.shape[1]).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(begins, index, 0).cummax(dim=1).values
    shared = (segments == 0).sum(dim=1, keepdim=True)
    return torch.where(segments == 0, index, index - start + shared)
