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

from mmreason.model.family import bare
from mmreason.rollout.sampling import SamplingParams

log = logging.getLogger(__name__)

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


def token_bytes(model: Any) -> int:
    """Bytes of one token's keys and values over all layers (a layer that keeps a state instead is counted as well)."""
    config = bare(model).get_decoder().config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(model.parameters()).element_size()
    return config.num_hidden_layers * 2 * heads * head * width


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
    size = token_bytes(model)
    while left:
        limits = [b for b in (params.kv_bytes, _most.get(bare(model))) if b is not None]
        most = min(limits) // size if limits else None
        batch, rest = _first(left, lengths, params, most, shared)
        if _fits_memory(decode, batch):
            left = rest
            continue
        if sum(map(len, batch)) == 1:
            raise ValueError(
                f"out of memory in the rollout of one row: a prompt of {lengths[batch[0].prompt]} tokens and up to "
                f"{params.max_new_tokens} new ones; lower max_completion_length, max_prompt_length, model.max_pixels "
                "or the model's size"
            )
        _most[bare(model)] = held(batch, lengths, params, shared) * size // 2
        log.warning(
            "out of memory in the rollout of %d rows: going on with %.3g MiB of keys and values at once, half of what "
            "was tried; rollout.kv_cache_memory_bytes sets it from the beginning",
            sum(map(len, batch)),
            _most[bare(model)] / 2**20,
        )


def held(batch: Sequence[Share], lengths: Sequence[int], params: SamplingParams, shared: bool) -> int:
    """Tokens whose keys and values a batch holds at most: its prompts padded to one width, its rows written full."""
    rows = sum(map(len, batch))
    width = max(lengths[share.prompt] for share in batch)
    return width * (len(batch) if shared else rows) + rows * params.max_new_tokens


def _first(
    left: Sequence[Share], lengths: Sequence[int], params: SamplingParams, most: int | None, shared: bool
) -> tuple[list[Share], list[Share]]:
    """The next batch and what is left. A prompt's rows are parted only where they alone are too many."""

    def fits(batch: list[Share]) -> bool:
        rows = sum(map(len, batch))
        return rows <= params.max_rows and (most is None or held(batch, lengths, params, shared) <= most)

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
