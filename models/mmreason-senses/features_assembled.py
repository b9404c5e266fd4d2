"""How hidden states of encoders become features: projectors, merging of neighbours, and a signal of time.

Shapes: N media, T hidden states per medium, D width of an encoder, H width of the LLM.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

PERIODS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # seconds of the waves that tell a moment
AST = "audio-spectrogram-transformer"


class AssembledProjector(nn.Module):
    """LayerNorm, then an MLP with GELU, from an encoder's width to the LLM's: [N, T, D] -> [N, T, H]."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear_in = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.linear_out = nn.Linear(hidden, out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.act(self.linear_in(self.norm(features))))


class TimeEmbedding(nn.Module):
    """Moments in seconds [...] -> [..., H]: a learned sum of sines and cosines, nothing at first."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, 2 * len(PERIODS)))

    def forward(self, seconds: torch.Tensor) -> torch.Tensor:
        turns = torch.tensor([2 * math.pi / period for period in PERIODS], device=seconds.device)
        phases = seconds.float().unsqueeze(-1) * turns
        waves = torch.cat([phases.sin(), phases.cos()], dim=-1)
        return nn.functional.linear(waves.to(self.weight.dtype), self.weight)


def merge_patches(hidden: torch.Tensor, merge: int) -> torch.Tensor:
    """Squares of `merge` x `merge` neighbours side by side: [N, T, D] -> [N, T / merge**2, D * merge**2]."""
    if merge == 1:
        return hidden
    count, tokens, width = hidden.shape
    side = int(tokens**0.5)
    squares = hidden.view(count, side // merge, merge, side // merge, merge, width).transpose(2, 3)
    return squares.reshape(count, tokens // merge**2, width * merge**2)


def merge_frames(hidden: torch.Tensor, merge: int) -> torch.Tensor:
    """The same place of `merge` frames that follow each other side by side: [F, T, D] -> [F / merge, T, D * merge]."""
    count, tokens, width = hidden.shape
    runs = hidden.view(count // merge, merge, tokens, width).transpose(1, 2)
    return runs.reshape(count // merge, tokens, width * merge)


def with_before(hidden: torch.Tensor, moments: torch.Tensor, context: int) -> torch.Tensor:
    """Every frame behind the `context` frames before it, side by side: [F, T, D] -> [F, T, D * (context + 1)].

    `moments` [F] rise within a video: where they do not, the next video begins. Before a video's first frame stands the
    first itself, so that nothing changes there.
    """
    places = torch.arange(len(hidden), device=hidden.device)
    begins = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    begins[1:] = moments[1:] <= moments[:-1]
    first = torch.where(begins, places, 0).cummax(dim=0).values
    before = [hidden[torch.maximum(places - back, first)] for back in range(context, 0, -1)]
    return torch.cat([*before, hidden], dim=-1)


def frequency_patches(config: Any) -> int:
    """Hidden states that an audio encoder makes of one moment: 1, or the patches of AST over all frequencies."""
    if config.model_type != AST:
        return 1
    return (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1


def merge_moments(hidden: torch.Tensor, config: Any, merge: int) -> torch.Tensor:
    """`merge` moments that follow each other side by side, in time order: [N, T, D] -> [N, steps, width].

    AST's hidden states are a class and a distillation token, left out, then its patches, frequency by frequency; all
    patches of one moment lie side by side here.
    """
    bands = frequency_patches(config)
    if config.model_type == AST:
        hidden = hidden[:, 2:]
    count, tokens, width = hidden.shape
    moments = hidden.view(count, bands, tokens // bands, width).transpose(1, 2)
    return moments.reshape(count, tokens // bands // merge, merge * bands * width)
