"""What is measured, and how: interleaved times, FLOPs of linear layers, bytes kept for the backward pass."""

from __future__ import annotations

import math
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Times:
    """Seconds of one side's rounds, on the wall and of this process's processors."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Add one round: what happens inside."""
        _wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        _wait()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Each side's `rounds`; the order turns round every time. Both have run before: a first time is no measure."""
    taken = {name: Times() for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            with taken[name].taking():
                sides[name]()
        order.reverse()
    return taken


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compared(taken: Mapping[str, Times], slow: str, fast: str) -> dict[str, Any]:
    """`{SLOW_s, FAST_s, ratio, spread, cpu_s, cpu_ratio, rounds}`: medians, and each side's lowest and highest.

    Where other work shares the machine, processor seconds tell more than those on the wall.

    Example: sides `plain` and `shared` give `plain_s`, `shared_s` and `ratio = plain_s / shared_s`.
    """
    wall = {name: statistics.median(taken[name].wall) for name in (slow, fast)}
    cpu = {name: statistics.median(taken[name].cpu) for name in (slow, fast)}
    return {
        f"{slow}_s": wall[slow],
        f"{fast}_s": wall[fast],
        "ratio": wall[slow] / wall[fast],
        "spread": {name: [min(taken[name].wall), max(taken[name].wall)] for name in (slow, fast)},
        "cpu_s": cpu,
        "cpu_ratio": cpu[slow] / cpu[fast],
        "rounds": len(taken[slow].wall),
    }


def environment() -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load": os.getloadavg()[0],
    }


def peak_rss() -> int:
    """The most memory this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class LinearFlops(TorchDispatchMode):
    """Counts the FLOPs of matrix products of two dimensions: linear layers, forward and backward, and nothing else.

    Attention's products are batched and stand apart. Example: `with LinearFlops() as count: model(x)`, `count.total`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            left = args[0] if name == "mm" else args[1]
            self.total += 2 * out.numel() * left.shape[1]
        return out


@contextmanager
def kept_for_backward(parameters: Collection[torch.Tensor]) -> Iterator[Callable[[], int]]:
    """Bytes of all that a forward pass keeps for its backward pass, the weights themselves left out.

    Storages are counted once, however many operations keep them; use it around one forward and its backward pass.
    """
    known = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(kept.values())


def log_uniform(count: int, low: int, high: int, seed: int = 0) -> torch.Tensor:
    """`count` whole numbers from `low` to `high`, their logarithms spread evenly; int64 [count]."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (math.log(low) + draws * (math.log(high) - math.log(low))).exp().round().long()
