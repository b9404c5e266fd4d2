"""This machine's constants for `scaling`: products, reads and messages of plain tensors, timed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIDE, ROWS = 1024, 512  # of the products
READ = 64 * 2**20  # bytes of the matrix that is read
SENT = 16 * 2**20  # bytes of a message
ROUNDS = 5


def constants_here() -> dict[str, float]:
    """The fields of `scaling.Machine` for one node of CPU processes, each with the threads that torch has here."""
    flops = 6 * SIDE * SIDE * ROWS / _best(_training())
    reads = READ / _best(_reading())
    size_s, empty_s = _messages()
    # two processes, all-reduced: each sends half twice
    near = SENT / max(size_s - empty_s, 1e-9)
    return {
        "flops": flops,
        "reads": reads,
        "near": near,
        "far": near,
        "per_node": 2**30,
        "latency": empty_s / 2,
    }


def _best(once: Callable[[], Any]) -> float:
    """Seconds of the quickest of ROUNDS, after one that is not counted."""
    once()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        once()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _training() -> Callable[[], Any]:
    """Forward and backward of a linear layer: six operations for each weight and row."""
    layer = torch.nn.Linear(SIDE, SIDE, bias=False)
    rows = torch.randn(ROWS, SIDE, requires_grad=True)
    return lambda: layer(rows).sum().backward()


def _reading() -> Callable[[], Any]:
    """One row through a matrix that no cache holds."""
    weights, row = torch.randn(READ // 4 // 4096, 4096), torch.randn(4096)
    return lambda: weights @ row


def _messages() -> tuple[float, float]:
    """Seconds of an all-reduce between two processes over gloo, of SENT bytes and of next to none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    told = context.SimpleQueue()
    ranks = [context.Process(target=_exchange, args=(rank, port, told)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return told.get()


def _exchange(rank: int, port: int, told: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    large, small = torch.zeros(SENT // 4), torch.zeros(1)
    taken = _best(lambda: dist.all_reduce(large)), _best(lambda: dist.all_reduce(small))
    if rank == 0:
        told.put(taken)
    dist.barrier()
    dist.destroy_process_group()
