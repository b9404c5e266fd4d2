"""A run in two processes of its own that talk over gloo, as torchrun would start them; one may be killed."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
from typing import Any

import torch

import mmreason_encoders  # noqa: F401  registers the architectures, once for all runs
from mmreason.schema import Recipe
from mmreason.train import folder, run
from mmreason.train.distributed import leave
from tests.train.killed import arm

WORLD = 2


def train_in_ranks(
    tree: dict[str, Any], world: int = WORLD, mutant: str | None = None, **where: Any
) -> list[int]:
    """Train the recipe in `world` processes, rank 0 armed as `killed.arm` says; their exit codes by rank.

    `mutant`: MODULE:FUNCTION, called in each of them beforehand.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, tree, mutant, where)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    ranks[0].join()
    for other in ranks[1:]:
        other.join(20 if ranks[0].exitcode == 0 else 5)
        if other.exitcode is None:  # it waits for a rank that is dead
            other.kill()
            other.join()
    return [process.exitcode for process in ranks]


def _rank(
    rank: int, world: int, port: int, tree: dict[str, Any], mutant: str | None, where: dict[str, Any]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder.write_probe = lambda *args: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    if mutant is not None:
        module, _, function = mutant.partition(":")
        getattr(importlib.import_module(module), function)()
    if rank == 0:
        arm(**where)
    run.train(Recipe.model_validate(tree))
    leave()
