"""Activations in the CPU's memory between the forward and the backward pass.

As torch's `save_on_cpu`, but for weights and small tensors, which stay, and for a tensor that several operations keep,
which goes once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import nn

SMALL = 2**16  # numbers: what is smaller stays, since a message costs more than it frees
Away = Callable[[torch.Tensor], Any]
Back = Callable[[Any], torch.Tensor]


@dataclass
class Moved:
    """Bytes that went away since the context was opened. Example: `Moved(4096)`."""

    total: int = 0


def to_cpu(x: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
    """A copy in memory that a GPU reaches by itself, made while the forward pass goes on."""
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    there.copy_(x, non_blocking=x.is_cuda)
    return x.device, there


def from_cpu(kept: tuple[torch.device, torch.Tensor]) -> torch.Tensor:
    """The tensor where it was."""
    device, there = kept
    return there.to(device, non_blocking=True)


@contextmanager
def offloaded(model: nn.Module, away: Away = to_cpu, back: Back = from_cpu) -> Iterator[Moved]:
    """What a forward pass keeps for the backward pass while this is open is moved by `away`, and comes by `back`."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    known: dict[
        tuple[Any, ...], tuple[Any, Any]
    ] = {}  # a tensor -> (its storage while that lives, what was made of it)
    moved = Moved()

    def pack(x: torch.Tensor) -> tuple[bool, Any]:
        storage = x.untyped_storage()
        if x.numel() < SMALL or storage._cdata in weights:
            return False, x
        key = (storage._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype, x._version)
        alive, kept = known.get(key, (None, None))
        if alive is None or alive() is None:
            kept = away(x)
            known[key] = (ref(storage), kept)
            moved.total += x.numel() * x.element_size()
        return True, kept

    def unpack(packed: tuple[bool, Any]) -> torch.Tensor:
        went, kept = packed
        return back(kept) if went else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield moved
    known.clear()
