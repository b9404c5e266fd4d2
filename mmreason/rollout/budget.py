"""How many rows are decoded at once: by their number, by the memory of keys and values, and less after running out.

A row's draws depend on its own seed only, so how rows are put together does not change what they write.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import LinearAttentionLayer

from mmreason.model.family import bare
from mmreason.rollout.sampling import SamplingParams

log = logging.getLogger(__name__)

PREFILL_TOKENS = 4096  # columns x prompts that are prefilled at once
FIRST = 64  # tokens that a row's buffer holds at first; it doubles when it is full

# What a model's rollouts ran out of memory with, in bytes: later ones stay below half of it.
_most: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@dataclass(frozen=True)
class Share:
    """Rows `first` to `last` (without it) of one prompt. Example: all eight of the third: `Share(2, 0, 8)`."""

    prompt: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Kept:
    """Bytes that a decoder keeps: of a token over all layers, the most of a token that one tensor holds, of a state.

    Example: two layers of one head of 16 in float32 are `Kept(token=256, widest=64, state=0)`.
    """

    token: int
    widest: int
    state: int  # of a row, whatever its length (linear attention)


@torch.no_grad()
def kept_by(model: Any) -> Kept:
    """What the model's decoder keeps, measured on one token."""
    decoder = bare(model).get_decoder()
    token = torch.zeros(1, 1, dtype=torch.long, device=bare(model).get_input_embeddings().weight.device)
    cache = decoder(input_ids=token, use_cache=True).past_key_values
    columns, state = [0], 0
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer):
            parts = (*layer.conv_states.values(), *layer.recurrent_states.values())
            state += sum(part.nbytes for part in parts if part is not None)
        elif layer.is_initialized:
            columns += [layer.keys.nbytes, layer.values.nbytes]
    return Kept(sum(columns), max(columns), state)


def in_batches(
    model: Any,
    lengths: Sequence[int],
    count: int,
    params: SamplingParams,
    decode: Callable[[list[Share]], None],
    *,
    shared: bool,
) -> None:
    """Decode `count` rows of each prompt (`lengths` in tokens), the shortest first, as many at once as may be.

    When memory runs out, the batch is split in two halves by memory, and this model's later ones stay that small.

    Args:
        decode: decodes one batch.
        shared: a prompt's keys are held once for all its rows of a batch; otherwise once for each row.

    Raises:
        ValueError: memory ran out with a single row; says what to lower.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    left = [Share(i, 0, count) for i in order]
    kept: Kept | None = None
    while left:
        limits = [b for b in (params.kv_bytes, _most.get(bare(model))) if b is not None]
        if limits and kept is None:
            kept = kept_by(model)
        batch, rest = _first(left, lengths, params, (min(limits), kept) if limits and kept else None, shared)
        if _fits_memory(decode, batch):
            left = rest
            continue
        if sum(map(len, batch)) == 1:
            raise ValueError(
                f"out of memory in the rollout of one row: a prompt of {lengths[batch[0].prompt]} tokens and up to "
                f"{params.max_new_tokens} new ones; lower max_completion_length, max_prompt_length, model.max_pixels "
                "or the model's size"
            )
        kept = kept or kept_by(model)
        _most[bare(model)] = held(kept, batch, lengths, params, shared) // 2
        log.warning(
            "out of memory in the rollout of %d rows: going on with %.3g MiB of keys and values at once, half of what "
            "was tried; rollout.kv_cache_memory_bytes sets it from the beginning",
            sum(map(len, batch)),
            _most[bare(model)] / 2**20,
        )


def fixed_batches(
    model: Any, lengths: Sequence[int], count: int, params: SamplingParams
) -> list[list[Share]]:
    """The batches of `in_batches` where every row holds its own prompt; none is tried again in halves
    where memory runs out."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    left = [Share(i, 0, count) for i in order]
    most = None if params.kv_bytes is None else (params.kv_bytes, kept_by(model))
    batches = []
    while left:
        batch, left = _first(left, lengths, params, most, shared=False)
        batches.append(batch)
    return batches


def held(
    kept: Kept, batch: Sequence[Share], lengths: Sequence[int], params: SamplingParams, shared: bool
) -> int:
    """Bytes of keys, values and states that a batch holds at most: its prompts padded to one width, its rows full.

    What is held twice for a moment is counted: prompts until they stand beside others that were prefilled before, and
    one layer's keys or values while they move to a larger buffer.
    """
    rows, new = sum(map(len, batch)), params.max_new_tokens
    width = max(lengths[share.prompt] for share in batch)
    if not shared:
        columns = rows * (width + new)
        return columns * (kept.token + kept.widest) + rows * kept.state
    prompts = len(batch) * (width * kept.token + kept.state)
    ends = list(prefilled_together([lengths[share.prompt] for share in batch]))
    runs = [
        (end - begin) * (lengths[batch[end - 1].prompt] * kept.token + kept.state)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]
    moved = [0, *capacities(new)][-2]
    twice = max(runs) if len(runs) > 1 else 0
    return prompts + max(twice, rows * (new * kept.token + moved * kept.widest + kept.state))


def prefilled_together(lengths: Sequence[int]) -> Iterator[int]:
    """Ends of the runs of prompts (the shortest first) that are prefilled together."""
    start = 0
    for i, length in enumerate(lengths):
        if i > start and (i + 1 - start) * length > PREFILL_TOKENS:
            yield i
            start = i
    yield len(lengths)


def capacities(most: int) -> list[int]:
    """Tokens that a row's buffer holds, from the first to the last time that it grows. Example: 150: 64, 128, 150."""
    sizes = [min(FIRST, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


def _first(
    left: Sequence[Share],
    lengths: Sequence[int],
    params: SamplingParams,
    most: tuple[int, Kept] | None,
    shared: bool,
) -> tuple[list[Share], list[Share]]:
    """The next batch and what is left. A prompt's rows are parted only where they alone are too many.

    `most`: bytes of keys and values at once, and what the model keeps; None: without bound.
    """

    def fits(batch: list[Share]) -> bool:
        rows = sum(map(len, batch))
        return rows <= params.max_rows and (
            most is None or held(most[1], batch, lengths, params, shared) <= most[0]
        )

    batch: list[Share] = []
    for place, share in enumerate(left):
        if fits([*batch, share]):
            batch.append(share)
            continue
        if batch:
            return batch, list(left[place:])
        rows = next((n for n in range(len(share), 1, -1) if fits([Share(share.prompt, 0, n)])), 1)
        cut = share.first + rows
        rest = [Share(share.prompt, cut, share.last)] if cut < share.last else []
        return [Share(share.prompt, share.first, cut)], [*rest, *left[place + 1 :]]
    return batch, []


def _fits_memory(decode: Callable[[list[Share]], None], batch: list[Share]) -> bool:
    """Decode the batch; False when memory ran out."""
    try:
        decode(batch)
        return True
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    gc.collect()  # what the failed attempt holds in cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def out_of_memory(error: BaseException) -> bool:
    """Whether torch (on an accelerator or the CPU) or Python says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def rows_of(batch: Sequence[Share]) -> Iterator[tuple[int, int]]:
    """(prompt, number among its rows) of every row of a batch."""
    for share in batch:
        for number in range(share.first, share.last):
            yield share.prompt, number
