"""Bytes of the tensors that are alive, and the most that were at once: of real tensors, and of fake ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """While it is open, every storage that an operation makes is counted until it is freed.

    What an operation needs inside itself is not seen. Tensors from before are counted once they are told (`hold`) or
    handed out by an operation (a view).

    Example: `with LiveBytes() as live: x = torch.zeros(10)` leaves `live.now == live.peak == 40`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, Any] = {}

    def hold(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count these too; returns the bytes that are alive now."""
        for tensor in tensors:
            self._see(tensor)
        return self.now

    def again(self) -> None:
        """Forget the peak: the next one is counted from what is alive now."""
        self.peak = self.now

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages[key] = ref(storage, lambda _: self._free(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = _chosen(func, args)
        if out is None:
            out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out


def _chosen(func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
    """What a real mask chooses of a fake tensor: as many rows as the mask says. By itself a fake one cannot tell."""
    if func is not torch.ops.aten.index.Tensor or not isinstance(args[0], FakeTensor) or len(args[1]) != 1:
        return None
    (mask,) = args[1]
    if mask is None or mask.dtype != torch.bool or isinstance(mask, FakeTensor):
        return None
    return args[0].new_empty((int(mask.sum()), *args[0].shape[mask.ndim :]))
