"""What another engine sampled, held against the trainer's own forward pass; and weights that answer differently."""

from __future__ import annotations

from typing import Any

import torch

from mmreason.objective import token_logprobs
from mmreason.render import Renderer
from mmreason.render.renderer import with_completion
from mmreason.rollout.vllm_requests import Prompt
from mmreason.types import Trajectory

MISMATCH = 1e-3  # allowed in float32; measured 5e-6


def shaken(model: Any, seed: int) -> None:
    """Other weights, far enough that another token is the likeliest almost everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def scored(
    model: Any, renderer: Renderer, of: Prompt, written: Trajectory, temperature: float
) -> torch.Tensor:
    """The trainer's log-probabilities of a completion, by the plain forward."""
    row = with_completion(of.rendered, written.ids, written.sampled)
    inputs = {"input_ids": row.ids[None], "mm_token_type_ids": row.token_types[None], **row.media}
    logits = model.eval()(**inputs).logits[:, -len(written) - 1 : -1]
    return token_logprobs(logits, row.ids[None, -len(written) :], renderer.placeholder_ids, temperature)[0][0]


def mismatch(
    model: Any, renderer: Renderer, given: list[Prompt], groups: list[list[Trajectory]], temperature: float
) -> float:
    worst = 0.0
    for of, group in zip(given, groups, strict=True):
        for written in group:
            assert written.logprobs is not None
            ours = scored(model, renderer, of, written, temperature)
            worst = max(worst, float((ours - written.logprobs).abs().max()))
    return worst
