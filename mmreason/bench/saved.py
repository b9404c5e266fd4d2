"""`bench memory`: what a GRPO step keeps for its backward pass, and the peak of its process, each side in its own."""

from __future__ import annotations

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from mmreason.bench.measure import LinearFlops, environment, kept_for_backward, peak_rss
from mmreason.bench.steps import SIDES, prepared
from mmreason.bench.work import Shape, workplace
from mmreason.train.step import train_step


def memory(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{saved_bytes: {plain, shared}, saved_bytes_ratio, peak_rss_bytes: {plain, shared}, ...}`; one round tells all.

    `before_step_rss_bytes` is the peak before the update, with libraries, model and rollout. The seconds and the linear
    FLOPs are of that one update, the first of its process.
    """
    del rounds
    told = {name: _in_its_own_process(shape, mode) for name, mode in SIDES.items()}
    saved = {name: values["saved_bytes"] for name, values in told.items()}
    return {
        "bench": "memory",
        "plain_s": told["plain"]["seconds"],
        "shared_s": told["shared"]["seconds"],
        "ratio": told["plain"]["seconds"] / told["shared"]["seconds"],
        "flop_ratio": told["plain"]["flops"] / told["shared"]["flops"],
        "saved_bytes": saved,
        "saved_bytes_ratio": saved["plain"] / saved["shared"],
        "peak_rss_bytes": {name: values["peak_rss_bytes"] for name, values in told.items()},
        "before_step_rss_bytes": {name: values["before_step_rss_bytes"] for name, values in told.items()},
        "shape": shape.as_dict(),
        "environment": environment(),
    }


def _in_its_own_process(shape: Shape, shared_prefix: str) -> dict[str, float]:
    here, there = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(
        target=_tell, args=(there, shape, shared_prefix, torch.get_num_threads())
    )
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        raise ValueError(
            f"bench memory: the process of shared_prefix={shared_prefix} ended with code {process.exitcode}; its "
            "message stands above"
        ) from None
    finally:
        process.join()


def _tell(there: Connection, shape: Shape, shared_prefix: str, threads: int) -> None:
    torch.set_num_threads(threads)
    there.send(measured(shape, shared_prefix))


def measured(shape: Shape, shared_prefix: str) -> dict[str, float]:
    """`{saved_bytes, flops, peak_rss_bytes, before_step_rss_bytes, seconds}` of one update in this process.

    The seconds include the counting of FLOPs; `bench step` times without it.
    """
    with workplace(shape) as folder:
        method, trainer = prepared(shape, folder, shared_prefix)
        with method.context.encoding():
            batch = method.collect(0.0, 1)
        before = peak_rss()
        began = time.perf_counter()
        weights = list(trainer.model.parameters())
        with method.context.encoding(), LinearFlops() as count, kept_for_backward(weights) as kept:
            train_step(trainer, batch.rows, batch.objective, 0.0)
        seconds = time.perf_counter() - began
    return {
        "saved_bytes": kept(),
        "flops": count.total,
        "peak_rss_bytes": peak_rss(),
        "before_step_rss_bytes": before,
        "seconds": seconds,
    }
