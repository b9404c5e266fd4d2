"""Forked rollouts: each prompt prefilled once, all its completions decoded beside it, rows dropped as they end.

The same completions as the plain path's: greedy ones token by token, sampled ones by the same policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mmreason.model.family import Family, bare, media_inputs
from mmreason.render import Renderer
from mmreason.rollout.forked_cache import NAME, ForkedCache, ForkedLayer
from mmreason.rollout.generate import concat_media, left_pad, trajectory
from mmreason.rollout.sampling import SamplingParams, as_ids, draw, row_seeds
from mmreason.types import Rendered, Trajectory

PREFILL_TOKENS = 4096  # columns x prompts that are prefilled at once
LOOK_EVERY = 8  # steps between two looks at what has ended, on a device that would have to be waited for


def unsupported(model: Any) -> str | None:
    """Why this model's prompts cannot be forked; None when they can."""
    decoder = bare(model).get_decoder()
    name, config = type(decoder).__name__, decoder.config
    strange = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if not strange:
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        strange = {kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer}}
    if strange:
        return f"{name} has layers of another kind than full and sliding attention: {sorted(strange)}"
    if not getattr(decoder, "_supports_attention_backend", False):
        return f"{name} takes no attention function from outside"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return f"{name} caps its attention's logits"
    attentions = [m for m in decoder.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj")]
    if {id(m.config) for m in attentions} != {id(config)} or any(hasattr(m, "sinks") for m in attentions):
        return f"{name} has attention modules that do not follow the decoder's own config"
    return None


@torch.no_grad()
def generate(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
    seeds: torch.Tensor | None = None,
) -> list[list[Trajectory]]:
    """`count` completions for each prompt, in the prompts' order, with the log-probabilities of their tokens.

    Args:
        seeds: int64 [prompts x count], one for each row, a prompt's rows together; None: drawn from torch's global
            generator (nothing is drawn where `params` are greedy).
    """
    if seeds is None:
        number = len(prompts) * count
        seeds = torch.zeros(number, dtype=torch.int64) if params.greedy else row_seeds(number)
    seeds = seeds.view(len(prompts), count)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    done: list[list[Trajectory]] = [[] for _ in prompts]
    learner, training = bare(model), model.training
    model.eval()
    together = max(1, params.max_rows // count)
    for start in range(0, len(order), together):
        chosen = order[start : start + together]
        rows = _decode(
            learner, family, renderer, [prompts[i] for i in chosen], seeds[chosen].flatten(), params
        )
        for place, i in enumerate(chosen):
            done[i] = rows[place * count : (place + 1) * count]
    model.train(training)
    return done


def _decode(
    model: Any,
    family: Family,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    seeds: torch.Tensor,
    params: SamplingParams,
) -> list[Trajectory]:
    """All rows of some prompts: `seeds` int64 [R], a prompt's rows together."""
    device = next(model.parameters()).device
    count = len(seeds)
    owner = torch.arange(len(prompts)).repeat_interleave(count // len(prompts))
    logits, positions, cache = _prefill(model, family, renderer.pad_id, prompts, owner)
    here = owner.to(device)
    logits, positions, seeds = logits[here], positions[..., here], seeds.to(device)
    banned = as_ids(renderer.placeholder_ids, device)
    ends = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
    ends[as_ids(renderer.eos_ids, device)] = True
    ids = torch.full((count, params.max_new_tokens), renderer.pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((count, params.max_new_tokens), device=device)
    alive = torch.arange(count, device=device)  # the rows still in decoding, where the cache holds them
    open_ = torch.ones(count, dtype=torch.bool, device=device)
    embed = model.get_input_embeddings()
    seen = torch.ones(
        1, 1, 1, 1, dtype=torch.bool, device=device
    )  # 4-D, taken as it is: the cache knows better
    every = 1 if device.type == "cpu" else LOOK_EVERY
    with _attention(model):
        for step in range(params.max_new_tokens):
            tokens, known = draw(logits, banned, seeds, step, params)
            ids[alive, step] = tokens
            logprobs[alive, step] = known
            open_ &= ~ends[tokens]
            if step + 1 == params.max_new_tokens:
                break
            if (step + 1) % every == 0 and not open_.all():
                if not open_.any():
                    break
                stay = cache.keep(open_.cpu()).to(device)
                alive, seeds, positions, tokens = alive[stay], seeds[stay], positions[..., stay], tokens[stay]
                open_ = torch.ones_like(stay, dtype=torch.bool)
            logits = model(
                inputs_embeds=embed(tokens.unsqueeze(-1)),
                attention_mask=seen,
                position_ids=(positions + step).unsqueeze(-1),
                past_key_values=cache,
                use_cache=True,
                forked=cache,
            ).logits[:, -1]
    return [trajectory(row, renderer, line) for row, line in zip(ids.cpu(), logprobs.cpu(), strict=True)]


def _prefill(
    model: Any, family: Family, pad_id: int, prompts: Sequence[Rendered], owner: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, ForkedCache]:
    """Logits after each prompt [P, V], positions of the token that follows [..., P], and the cache of its rows."""
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each layer
    logits, positions, start = [], [], 0
    for end in _batches(prompts):
        chosen = prompts[start:end]
        ids, seen, token_types = left_pad(chosen, pad_id)
        inputs = media_inputs(family, concat_media(chosen), token_types)
        inputs = {name: x.to(device) for name, x in inputs.items()} | {"attention_mask": seen.to(device)}
        ids = ids.to(device)
        # the one place where every model says itself where its prompts' tokens stand, M-RoPE included
        places = model._prepare_position_ids_for_generation(ids, dict(inputs))
        cache = DynamicCache()  # without a config: sliding layers keep all columns too
        with _last_only(model):
            out = model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True, **inputs)
        logits.append(out.logits[:, -1])
        positions.append(places[..., -1] + 1)
        mask[start:end, -ids.shape[1] :] = seen.bool()
        for i, layer in enumerate(cache.layers):
            if start == 0:
                parts.append(
                    tuple(
                        x.new_zeros(len(prompts), x.shape[1], width, x.shape[3])
                        for x in (layer.keys, layer.values)
                    )
                )
            for whole, part in zip(parts[i], (layer.keys, layer.values), strict=True):
                whole[start:end, :, -part.shape[2] :] = part
        start = end
    layers = [ForkedLayer(*pair, rows=len(owner)) for pair in parts]
    return torch.cat(logits), torch.cat(positions, dim=-1), ForkedCache(layers, mask.to(device), owner)


def _batches(prompts: Sequence[Rendered]) -> Iterator[int]:
    """Ends of the runs of prompts (shortest first) that are prefilled together."""
    start = 0
    for i, prompt in enumerate(prompts):
        if i > start and (i + 1 - start) * len(prompt) > PREFILL_TOKENS:
            yield i
            start = i
    yield len(prompts)


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
