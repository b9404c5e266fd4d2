"""A run in a process of its own that SIGKILL ends at a chosen point: nothing is flushed, closed or tidied up."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import mmreason_encoders  # noqa: F401  registers the architectures, once for all killed runs
from mmreason.evaluate import store
from mmreason.schema import Recipe
from mmreason.train import checkpoint, evaluation, folder, run
from mmreason.train.metrics import Metrics


def killed(tree: dict[str, Any], **where: Any) -> None:
    """Train the recipe in another process until it is killed; `where` as in `arm`. One that survives is an error."""
    # processes fork from a server that has imported everything and has run nothing
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train_to_death, args=(tree, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"the run ended with {process.exitcode}; it was to be killed"


def train_to_death(tree: dict[str, Any], where: dict[str, Any]) -> None:
    """What the other process does."""
    folder.write_probe = lambda *args: None  # type: ignore[assignment]  # as in the runs it is compared with
    torch.set_num_threads(1)
    arm(**where)
    run.train(Recipe.model_validate(tree))


def arm(
    *,
    step: int | None = None,
    file_of_save: tuple[int, int] | None = None,
    evaluated: tuple[str, str] | None = None,
) -> None:
    """Die after metrics line `step` is written, or at file m of checkpoint save n: `file_of_save=(n, m)`, from 1.

    Or in the evaluation of a stage: `evaluated=(stage, moment)`, once its `answers` are there, its `rows` are written,
    or its `block` is stored.
    """
    if evaluated is not None:
        _arm_evaluation(*evaluated)
    if step is not None:
        dying = partial(_after_write, Metrics.write, step)
        Metrics.write = lambda self, *given: dying(self, *given)  # type: ignore[method-assign]
    if file_of_save is not None:
        save, file = file_of_save
        seen = {"saves": 0, "files": 0}
        write, digest = checkpoint.save_checkpoint, checkpoint._sha256

        def counted_save(*args: Any, **kwargs: Any) -> None:
            seen.update(saves=seen["saves"] + 1, files=0)
            write(*args, **kwargs)

        def dying_digest(path: Any) -> str:
            seen["files"] += 1
            if (seen["saves"], seen["files"]) == (save, file):
                die()
            return digest(path)

        run.save_checkpoint = counted_save
        checkpoint._sha256 = dying_digest


def _arm_evaluation(stage: str, moment: str) -> None:
    now = {"stage": ""}
    evaluate_stage, evaluate, write_json = evaluation.evaluate_stage, evaluation.evaluate, store.write_json

    def watched(context: Any, name: str) -> None:
        now["stage"] = name
        evaluate_stage(context, name)
        if (name, moment) == (stage, "block"):
            die()
        now["stage"] = ""

    def answered(*args: Any, **kwargs: Any) -> Any:
        rows = evaluate(*args, **kwargs)
        return die() if (now["stage"], moment) == (stage, "answers") else rows

    def written(*args: Any) -> None:
        if (now["stage"], moment) == (stage, "rows"):
            die()
        write_json(*args)

    run.evaluate_stage, evaluation.evaluate, store.write_json = watched, answered, written  # type: ignore[assignment]


def _after_write(write: Callable[..., Any], last: int, metrics: Metrics, step: int, *given: Any) -> Any:
    line = write(metrics, step, *given)
    if step == last:
        die()
    return line


def die() -> None:
    """SIGKILL, to this very process."""
    os.kill(os.getpid(), signal.SIGKILL)
