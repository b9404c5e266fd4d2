"""One thin backend per way of running: `plain` (one process), `ddp` and `deepspeed` (one process a device).

The step hands `backward` a loss that is already divided by the *global* denominator. Whatever averaging an engine
does on top (the mean over ranks of DDP and DeepSpeed) is undone in the backends and nowhere else.
`deepspeed_backend.py` holds the third one, so that DeepSpeed is imported only where a recipe asks for it.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from mmreason.train.deepspeed_config import DeepSpeedConfig

WAIT = 1800.0  # seconds, where the recipe says nothing else
OPTIMIZER = "optimizer.pt"
# what the messages of gloo and NCCL hold when another rank is gone or late, and no other error's
LOST = ("gloo/transport", "Timed out waiting", "NCCL error", "NCCL communicator", "Connection closed by peer")


class Backend:
    """One process: nothing to reduce, nothing to undo. The other backends override what differs."""

    rank = 0
    world_size = 1
    lockstep = False  # every rank must use the same parameters in every micro-batch, in the same order
    gathers = False  # a wrapped model's parameters lie in pieces on all ranks but while a module runs, and in `whole`

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> nn.Module:
        """The module to call in the training forward, until `release`."""
        return model

    def release(self) -> None:
        """A stage is over: the model that `wrap` was given is a plain one again, whole on every rank."""

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        """Accumulate gradients of `loss` (a sum over local rows / the global denominator).

        `last` says that the update comes next: an engine may have waited for it to sum over ranks.
        """
        loss.backward()

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum gradients over ranks that a loss made outside the wrapped model's forward has left."""

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        """Clip, update, forget the gradients; their norm before clipping. One that is not finite changes nothing."""
        trainable = [p for group in optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(trainable, max_grad_norm))
        if math.isfinite(norm):  # a NaN that reached the optimizer would ruin its moments for good
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The wrapped model's parameters are all there on every rank, to read; all ranks enter and leave together."""
        yield

    @contextmanager
    def in_pieces(self) -> Iterator[None]:
        """The wrapped model runs as its parameters lie: on all ranks the same modules, equally often."""
        yield

    def apart(self) -> bool:
        """Whether the wrapped model's parameters now lie in pieces, but for the module that runs."""
        return False

    def room_for_all(self) -> bool:
        """Whether this rank has the memory that `whole` takes, and half as much again."""
        return True

    def save_optimizer(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """Write moments and step counts into a checkpoint's folder; called by all ranks."""
        if self.is_main:
            torch.save(optimizer.state_dict(), folder / OPTIMIZER)

    def load_optimizer(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """The inverse of `save_optimizer` (tensors only: no pickled objects are accepted)."""
        state = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        optimizer.load_state_dict(state)

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


class Ranks(Backend):
    """One process of several that talk over gloo (CPU) or NCCL (GPU)."""

    def __init__(self, wait: float = WAIT) -> None:
        local = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available()
        super().__init__(torch.device("cuda", local) if cuda else torch.device("cpu"))
        if cuda:
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            alone: dict[str, Any] = (
                {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
            )
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=wait), **alone)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

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


class DDPBackend(Ranks):
    """torch DistributedDataParallel; started by torchrun."""

    def sum_gradients(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(used)
        # one that no rank used keeps none: a gradient of zero would still decay its weights
        parameters = [p for p, ranks in zip(parameters, used.tolist(), strict=True) if ranks]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p).clone()

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> nn.Module:
        # A rank whose rows carry no picture leaves the vision tower unused. Gradients are reduced after every
        # micro-batch, never under no_sync: DDP leaves a parameter alone that no rank used in the micro-batch that
        # syncs, so what earlier micro-batches gave it would stay local and the ranks would drift apart.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        (loss * self.world_size).backward()  # DDP averages over ranks; the denominator is global already


def make_backend(name: str, deepspeed: DeepSpeedConfig | None = None, wait: float = WAIT) -> Backend:
    """`auto` is deepspeed where the recipe has its key, ddp when torchrun started us (WORLD_SIZE > 1), else plain.

    `wait`: seconds that ranks wait for the slowest one in any exchange.

    Raises:
        ValueError: what the recipe names cannot run as this process was started; says what to do.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if deepspeed is not None:
        if name != "auto":
            raise ValueError(f"backend: {name} and a deepspeed key exclude each other; leave one of them out")
        from mmreason.train.deepspeed_backend import DeepSpeedBackend

        return DeepSpeedBackend(deepspeed, wait)
    if name == "ddp" and "RANK" not in os.environ:
        raise ValueError(
            "backend: ddp needs torchrun (RANK is not set); run `mmreason launch --nproc N RECIPE`"
        )
    if name == "plain" and world > 1:
        raise ValueError(f"backend: plain is one process, but WORLD_SIZE={world}; use backend: auto or ddp")
    if name == "ddp" or (name == "auto" and world > 1):
        return DDPBackend(wait)
    return Backend(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """An exchange between ranks that fails meanwhile is told with what to do.

    Raises:
        ConnectionError: in place of torch's own RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if not isinstance(error, dist.DistError) and not any(mark in said for mark in LOST):
            raise
        rank = os.environ.get("RANK", "0")
        raise ConnectionError(
            f"rank {rank} has lost the others: one of them has stopped (what it said stands above), or came later than "
            "ddp_timeout allows (a slow reward, reading media, a checkpoint: raise it); start again to go on from the "
            f"newest checkpoint. NCCL_DEBUG=INFO tells more on GPUs. torch said: {said.splitlines()[0][:300]}"
        ) from error


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
