"""One thin backend per way of running: `plain` (one process) and `ddp` (torchrun, one process a device).

The step hands `backward` a loss that is already divided by the *global* denominator. Whatever averaging an engine
does on top (DDP's mean over ranks) is undone here and nowhere else.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Backend:
    """One process: nothing to reduce, nothing to undo. The other backends override what differs."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in the training forward."""
        return model

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients of `loss` (a sum over local rows / the global denominator)."""
        loss.backward()

    def sum(self, value: float) -> float:
        """Sum of `value` over ranks, in float64."""
        return value

    def max(self, value: int) -> int:
        """Largest `value` over ranks."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order."""
        return [value]

    def barrier(self) -> None:
        """Wait for every rank."""

    def close(self) -> None:
        """Leave the process group."""


class DDPBackend(Backend):
    """torch DistributedDataParallel over gloo (CPU) or NCCL (GPU); started by torchrun."""

    def __init__(self) -> None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available()
        super().__init__(torch.device("cuda", local) if cuda else torch.device("cpu"))
        if cuda:
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=30))
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module) -> nn.Module:
        # A rank whose rows carry no picture leaves the vision tower unused. Gradients are reduced after every
        # micro-batch, never under no_sync: DDP leaves a parameter alone that no rank used in the micro-batch that
        # syncs, so what earlier micro-batches gave it would stay local and the ranks would drift apart.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.world_size).backward()  # DDP averages over ranks; the denominator is global already

    def sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def max(self, value: int) -> int:
        largest = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: Any) -> list[Any]:
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out

    def barrier(self) -> None:
        dist.barrier()

    def close(self) -> None:
        """Leave the process group; the caller has let go of every wrapped model by now.

        A DistributedDataParallel that outlives the group holds its last reference, and when Python then frees it
        under the interpreter lock, gloo's threads and the destructor wait for each other (1 run in 8, measured).
        """
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


def make_backend(name: str) -> Backend:
    """`auto` is ddp when torchrun started us (WORLD_SIZE > 1), else plain."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if name == "ddp" and "RANK" not in os.environ:
        raise ValueError(
            "backend: ddp needs torchrun (RANK is not set); run `mmreason launch --nproc N RECIPE`"
        )
    if name == "plain" and world > 1:
        raise ValueError(f"backend: plain is one process, but WORLD_SIZE={world}; use backend: auto or ddp")
    if name == "ddp" or (name == "auto" and world > 1):
        return DDPBackend()
    return Backend(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def shard(items: Sequence[Any], backend: Backend) -> list[Any]:
    """This rank's share of a list whose length the world size divides."""
    return list(items[backend.rank :: backend.world_size])


def leave() -> None:
    """End a process of a finished distributed run at once.

    gloo's threads outlive the process group and can block or abort the interpreter's teardown (seen here: a rank
    that had done all its work hung for good), so a rank that is done leaves without it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
