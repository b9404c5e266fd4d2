"""Forked rollouts: each prompt prefilled once, all its completions decoded beside it, rows dropped as they end.

The same completions as the plain path's: greedy ones token by token, sampled ones by the same policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from mmreason.model.family import Family, bare, media_inputs, out_of_training
from mmreason.render import Renderer
from mmreason.rollout.budget import Share, in_batches, prefilled_together, rows_of
from mmreason.rollout.forked_cache import NAME, ForkedCache, ForkedLayer, ForkedState, forked_layer
from mmreason.rollout.generate import concat_media, left_pad, trajectory
from mmreason.rollout.sampling import SamplingParams, as_ids, draw, fresh_seeds
from mmreason.rollout.stopping import StopStrings
from mmreason.types import Rendered, Trajectory

LOOK_EVERY = 8  # steps between two looks at what has ended, on a device that would have to be waited for


@torch.no_grad()
def generate(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
    seeds: torch.Tensor | None = None,
    limits: torch.Tensor | None = None,
) -> list[list[Trajectory]]:
    """`count` completions for each prompt, in the prompts' order, with the log-probabilities of their tokens.

    Args:
        seeds: int64 [prompts x count], one for each row, a prompt's rows together; None: drawn from torch's global
            generator (nothing is drawn where `params` are greedy).
        limits: int64 of the same shape, how many tokens a row may write, 1 to `params.max_new_tokens`; None: all that.

    Raises:
        ValueError: not even one row fits into memory.
    """
    seeds = fresh_seeds(len(prompts), count, params) if seeds is None else seeds.view(len(prompts), count)
    limits = torch.full_like(seeds, params.max_new_tokens) if limits is None else limits.view_as(seeds)
    done: dict[tuple[int, int], Trajectory] = {}
    learner = bare(model)

    def decode(batch: list[Share]) -> None:
        rows = list(rows_of(batch))
        chosen = [prompts[share.prompt] for share in batch]
        owner = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(share) for share in batch]))
        places = torch.tensor([i * count + n for i, n in rows])
        decoding = _Rows(renderer, params, seeds.flatten()[places], limits.flatten()[places])
        completed = _decode(learner, family, renderer.pad_id, chosen, owner, decoding)
        done.update(zip(rows, completed, strict=True))

    with out_of_training(model):
        in_batches(learner, [len(p) for p in prompts], count, params, decode, shared=True)
    return [[done[i, n] for n in range(count)] for i in range(len(prompts))]


@torch.no_grad()
def largest_moments(
    model: Any,
    family: Family,
    pad_id: int,
    prompts: Sequence[Rendered],
    owner: torch.Tensor,
    new_tokens: int,
) -> torch.Tensor:
    """What a rollout's memory is largest in: the prefill, and the last step of rows that are written full.

    For fake tensors, which cannot be drawn from. `owner` is int64 [R], the prompt of each row; returns logits [R, V].
    """
    logits, positions, cache = _prefill(model, family, pad_id, prompts, owner, new_tokens)
    for layer in cache.layers:
        if isinstance(layer, ForkedLayer):
            layer.fill(new_tokens - 1)
    device = logits.device
    here = owner.to(device)
    tokens, seen = torch.zeros_like(here), torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    with _attention(model):
        return model(
            inputs_embeds=model.get_input_embeddings()(tokens.unsqueeze(-1)),
            attention_mask=seen,
            position_ids=(positions[..., here] + new_tokens - 1).unsqueeze(-1),
            past_key_values=cache,
            use_cache=True,
            forked=cache,
        ).logits[:, -1]


def _decode(
    model: Any,
    family: Family,
    pad_id: int,
    prompts: Sequence[Rendered],
    owner: torch.Tensor,
    rows: _Rows,
) -> list[Trajectory]:
    """All rows of some prompts; `owner` int64 [R] says whose."""
    device = next(model.parameters()).device
    logits, positions, cache = _prefill(model, family, pad_id, prompts, owner, rows.params.max_new_tokens)
    here = owner.to(device)
    logits, positions = logits[here], positions[..., here]
    rows.start(logits)
    embed = model.get_input_embeddings()
    seen = torch.ones(
        1, 1, 1, 1, dtype=torch.bool, device=device
    )  # 4-D, taken as it is: the cache knows better
    with _attention(model):
        for step in range(rows.params.max_new_tokens):
            tokens = rows.draw(logits, step)
            stay = rows.staying(step)
            if stay is not None:
                if not stay.any():
                    break
                kept = cache.keep(stay).to(device)
                rows.keep(kept)
                positions, tokens = positions[..., kept], tokens[kept]
            logits = model(
                inputs_embeds=embed(tokens.unsqueeze(-1)),
                attention_mask=seen,
                position_ids=(positions + step).unsqueeze(-1),
                past_key_values=cache,
                use_cache=True,
                forked=cache,
            ).logits[:, -1]
    return rows.trajectories()


class _Rows:
    """What the rows of a batch have written, and which of them go on; `seeds` and `limits` are int64 [R]."""

    def __init__(
        self, renderer: Renderer, params: SamplingParams, seeds: torch.Tensor, limits: torch.Tensor
    ) -> None:
        self.renderer, self.params, self.seeds, self.limits = renderer, params, seeds, limits
        self.stop = StopStrings(params.stop, renderer.decode)

    def start(self, logits: torch.Tensor) -> None:
        """Room for the rows of these logits [R, V], on their device."""
        count, device = len(logits), logits.device
        self.seeds, self.limits = self.seeds.to(device), self.limits.to(device)
        self.banned = as_ids(self.renderer.placeholder_ids, device)
        self.ends = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        self.ends[as_ids(self.renderer.eos_ids, device)] = True
        shape = (count, self.params.max_new_tokens)
        self.ids = torch.full(shape, self.renderer.pad_id, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        # the rows still in decoding, where the cache holds them, and which of those have not come to their end
        self.alive = torch.arange(count, device=device)
        self.open = torch.ones(count, dtype=torch.bool, device=device)
        self.every = 1 if device.type == "cpu" else LOOK_EVERY

    def draw(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """The next token of each row, int64 [R]."""
        tokens, known = draw(logits, self.banned, self.seeds[self.alive], step, self.params)
        self.ids[self.alive, step] = tokens
        self.logprobs[self.alive, step] = known
        self.open &= ~self.ends[tokens] & (self.limits[self.alive] > step + 1)
        return tokens

    def staying(self, step: int) -> torch.Tensor | None:
        """Which rows go on, bool [R] on the CPU; None: all of those that are held."""
        if step + 1 == self.params.max_new_tokens:
            return torch.zeros(len(self.alive), dtype=torch.bool)
        if (step + 1) % self.every:
            return None
        if self.params.stop:
            first = step + 1 - self.every
            begin = max(0, first - self.stop.tail)
            rows = self.ids[self.alive, begin : step + 1].tolist()
            stopped = [self.stop.end(row, first - begin) is not None for row in rows]
            self.open &= ~torch.tensor(stopped, device=self.open.device)
        if bool(self.open.all()) or (not self.params.drop_finished and bool(self.open.any())):
            return None
        return self.open.cpu()

    def keep(self, kept: torch.Tensor) -> None:
        """Row `kept[i]` now stands at place i; the others are gone."""
        self.alive = self.alive[kept]
        self.open = torch.ones_like(kept, dtype=torch.bool)

    def trajectories(self) -> list[Trajectory]:
        """All rows, cut at their ends."""
        lines = zip(self.ids.cpu(), self.logprobs.cpu(), self.limits.tolist(), strict=True)
        return [trajectory(row[:n], self.renderer, self.stop, line) for row, line, n in lines]


def _prefill(
    model: Any, family: Family, pad_id: int, prompts: Sequence[Rendered], owner: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, ForkedCache]:
    """Logits after each prompt [P, V], positions of the token that follows [..., P], and the cache of its rows.

    `most` is how many tokens a row may write.
    """
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    logits, positions, start = [], [], 0
    layers: list[ForkedLayer | ForkedState] = []
    for end in prefilled_together([len(prompt) for prompt in prompts]):
        chosen = prompts[start:end]
        ids, seen, token_types = left_pad(chosen, pad_id)
        inputs = media_inputs(family, concat_media(chosen), token_types)
        inputs = {name: x.to(device) for name, x in inputs.items()} | {"attention_mask": seen.to(device)}
        ids = ids.to(device)
        # the one place where every model says itself where its prompts' tokens stand, M-RoPE included
        places = model._prepare_position_ids_for_generation(ids, dict(inputs))
        cache = _prompt_cache(model)
        with _last_only(model):
            logits.append(
                model(
                    input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, **inputs
                ).logits[:, -1]
            )
        positions.append(places[..., -1] + 1)
        mask[start:end, -ids.shape[1] :] = seen.bool()
        if start == 0:
            layers = [forked_layer(layer, len(prompts), width) for layer in cache.layers]
        for whole, part in zip(layers, cache.layers, strict=True):
            whole.put(start, end, part)
        del cache, part  # before there is room for the rows, or for the next prompts
        start = end
    for layer in layers:
        layer.fork(owner.to(device), most)
    return torch.cat(logits), torch.cat(positions, dim=-1), ForkedCache(layers, mask.to(device), owner)


def _prompt_cache(model: Any) -> DynamicCache:
    """An empty cache whose sliding layers keep all columns, as full ones do."""
    kinds = DynamicCache(config=model.get_decoder().config).layers
    cache = DynamicCache()
    cache.layers = [layer if isinstance(layer, ForkedState.BASE) else DynamicLayer() for layer in kinds]
    return cache


@contextmanager
def _last_only(model: Any) -> Iterator[None]:
    """Logits of the last column only: of a long prompt's every token they would be larger than all else."""

    def last(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][:, -1:], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(last)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _attention(model: Any) -> Iterator[None]:
    """The decoder attends through the forked cache; its encoders as before."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
