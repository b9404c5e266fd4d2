"""The plain rollout: every prompt repeated G times through transformers' own `generate`.

It is the oracle that faster engines are held against, and their named fallback. Media placeholders are banned in
sampling, since a sampled placeholder would later claim a feature that no encoder made. Greedy choices are
transformers' own; sampled ones are drawn as every engine here draws them, so that one seed gives one completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from mmreason.model.family import Family, media_inputs, out_of_training
from mmreason.render import Renderer
from mmreason.rollout.budget import Share, in_batches, rows_of
from mmreason.rollout.sampling import SamplingParams, as_ids, draw, fresh_seeds
from mmreason.rollout.stopping import StopStrings
from mmreason.types import Rendered, Trajectory


def generate(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
    seeds: torch.Tensor | None = None,
) -> list[list[Trajectory]]:
    """`count` completions for each prompt, in the prompts' order; sampled ones with their tokens' log-probabilities.

    Args:
        seeds: int64 [prompts x count], one for each row, a prompt's rows together; None: drawn from torch's global
            generator, so the caller's seed (or a restored state) decides the draw (greedy draws nothing).

    Raises:
        ValueError: not even one row fits into memory.
    """
    seeds = fresh_seeds(len(prompts), count, params) if seeds is None else seeds.view(len(prompts), count)
    done: dict[tuple[int, int], Trajectory] = {}

    def decode(batch: list[Share]) -> None:
        rows = list(rows_of(batch))
        chosen = torch.stack([seeds[i, n] for i, n in rows])
        completed = decode_rows(model, family, renderer, [prompts[i] for i, _ in rows], params, chosen)
        done.update(zip(rows, completed, strict=True))

    with out_of_training(model):
        in_batches(model, [len(p) for p in prompts], count, params, decode, shared=False)
    return [[done[i, n] for n in range(count)] for i in range(len(prompts))]


@torch.no_grad()
def decode_rows(
    model: Any,
    family: Family,
    renderer: Renderer,
    rows: Sequence[Rendered],
    params: SamplingParams,
    seeds: torch.Tensor,
    *,
    idle: int = 0,
    in_step: bool = False,
) -> list[Trajectory]:
    """One completion for each row (`seeds` int64 [R]) but the last `idle` ones, which end with their first token.

    `in_step`: all ranks call this together, and each goes on until the last one's rows have ended.
    """
    device = next(model.parameters()).device
    ids, mask, token_types = left_pad(rows, renderer.pad_id)
    inputs = media_inputs(family, concat_media(rows), token_types)
    stop = StopStrings(params.stop, renderer.decode)
    banned = as_ids(renderer.placeholder_ids, device)
    drawing = None if params.greedy else _Draw(banned, seeds.to(device), ids.shape[1], params)
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
        do_sample=False,
        logits_processor=[] if drawing is None else [drawing],
        stopping_criteria=[_Stops(stop, ids.shape[1])] * bool(params.stop) + [_Idle(idle)] * bool(idle),
        synced_gpus=in_step,
    )
    completions = out[:, ids.shape[1] :].cpu()
    known = [None] * len(rows) if drawing is None else torch.stack(drawing.logprobs, dim=1).cpu()
    lines = list(zip(completions, known, strict=True))[: len(rows) - idle]
    return [trajectory(row, renderer, stop, line) for row, line in lines]


class _Draw(LogitsProcessor):
    """Leaves one token of each row to be chosen: the one that this row's seed draws at this step."""

    def __init__(self, banned: torch.Tensor, seeds: torch.Tensor, width: int, params: SamplingParams) -> None:
        self.banned, self.seeds, self.width, self.params = banned, seeds, width, params
        self.logprobs: list[torch.Tensor] = []  # of each step, [R]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens, logprobs = draw(scores, self.banned, self.seeds, input_ids.shape[1] - self.width, self.params)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)


class _Stops(StoppingCriteria):
    """Ends a row behind a stop string in what it wrote; `width` columns before that are the prompt."""

    def __init__(self, stop: StopStrings, width: int) -> None:
        self.stop, self.width = stop, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        rows = input_ids[:, self.width :].tolist()
        ended = [self.stop.end(row, len(row) - 1) is not None for row in rows]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class _Idle(StoppingCriteria):
    """Ends the last `count` rows at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.arange(len(input_ids), device=input_ids.device) >= len(input_ids) - self.count


def trajectory(
    row: torch.Tensor,
    renderer: Renderer,
    stop: StopStrings | None = None,
    logprobs: torch.Tensor | None = None,
) -> Trajectory:
    """Cut one decoded row after its first end token or stop string; one without either ran into the length limit.

    The text is without the end token, but with the stop string.
    """
    ends = torch.isin(row, torch.tensor(sorted(renderer.eos_ids)))
    ended = bool(ends.any())
    length = int(ends.float().argmax()) + 1 if ended else row.numel()
    stopped = None if stop is None else stop.end(row[:length].tolist())
    if stopped is not None and (stopped < length or not ended):
        ended, length, text = True, stopped, renderer.decode(row[:stopped])
    else:
        text = renderer.decode(row[: length - 1] if ended else row)
    return Trajectory(
        ids=row[:length].clone(),
        sampled=torch.ones(length, dtype=torch.bool),
        text=text,
        finish="stop" if ended else "length",
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
