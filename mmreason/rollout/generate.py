"""The plain rollout: every prompt repeated G times through transformers' own `generate`.

It is the oracle that faster engines are held against, and their named fallback. Media placeholders are banned in
sampling, since a sampled placeholder would later claim a feature that no encoder made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmreason.model.family import Family, media_inputs
from mmreason.render import Renderer
from mmreason.rollout.sampling import SamplingParams
from mmreason.types import Rendered, Trajectory


def generate(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
) -> list[list[Trajectory]]:
    """`count` completions for each prompt, in the prompts' order.

    Sampling reads torch's global generator, so the caller's seed (or a restored state) decides the draw.
    """
    rows = [(index, prompt) for index, prompt in enumerate(prompts) for _ in range(count)]
    order = sorted(
        range(len(rows)), key=lambda i: (len(rows[i][1]), i)
    )  # like lengths together: less padding
    done: list[Trajectory | None] = [None] * len(rows)
    training = model.training
    model.eval()
    for start in range(0, len(order), params.max_rows):
        chosen = order[start : start + params.max_rows]
        completions = _decode_rows(model, family, renderer, [rows[i][1] for i in chosen], params)
        for i, completion in zip(chosen, completions, strict=True):
            done[i] = completion
    model.train(training)
    out: list[list[Trajectory]] = [[] for _ in prompts]
    for (index, _), trajectory in zip(rows, done, strict=True):
        assert trajectory is not None
        out[index].append(trajectory)
    return out


@torch.no_grad()
def _decode_rows(
    model: Any, family: Family, renderer: Renderer, rows: Sequence[Rendered], params: SamplingParams
) -> list[Trajectory]:
    device = next(model.parameters()).device
    ids, mask, token_types = left_pad(rows, renderer.pad_id)
    inputs = media_inputs(family, concat_media(rows), token_types)
    sampling: dict[str, Any] = {"do_sample": False}
    if not params.greedy:
        sampling = {
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "typical_p": 1.0,
        }
    out = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        **{k: v.to(device) for k, v in inputs.items()},
        max_new_tokens=params.max_new_tokens,
        eos_token_id=list(renderer.eos_ids),
        pad_token_id=renderer.pad_id,
        suppress_tokens=list(renderer.placeholder_ids),
        # A checkpoint's generation_config may bend the distribution; training scores the one that is sampled from.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        **sampling,
    )
    completions = out[:, ids.shape[1] :].cpu()
    return [trajectory(row, renderer) for row in completions]


def trajectory(row: torch.Tensor, renderer: Renderer, logprobs: torch.Tensor | None = None) -> Trajectory:
    """Cut one decoded row after its first end token; a row without one ran into the length limit."""
    ends = torch.isin(row, torch.tensor(sorted(renderer.eos_ids)))
    stopped = bool(ends.any())
    length = int(ends.float().argmax()) + 1 if stopped else row.numel()
    ids = row[:length].clone()
    text = renderer.decode(ids[:-1] if stopped else ids)
    return Trajectory(
        ids=ids,
        sampled=torch.ones(length, dtype=torch.bool),
        text=text,
        finish="stop" if stopped else "length",
        logprobs=None if logprobs is None else logprobs[:length].clone(),
    )


def left_pad(rows: Sequence[Rendered], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and token types of prompts, [B, L] each, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    token_types = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row.ids
        mask[i, width - len(row) :] = 1
        token_types[i, width - len(row) :] = row.token_types
    return ids, mask, token_types


def concat_media(rows: Sequence[Rendered]) -> dict[str, torch.Tensor]:
    """The media tensors of all rows, in order, by the argument that takes them."""
    names = sorted({name for row in rows for name in row.media})
    return {name: torch.cat([row.media[name] for row in rows if name in row.media]) for name in names}
