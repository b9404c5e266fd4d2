"""The loop around the step, the same for every stage: budget, step, log, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmreason.model.encode_once import begin_anew
from mmreason.schema import StageConfig
from mmreason.train.context import Context, Method
from mmreason.train.step import Trainer, train_step


@dataclass
class Budget:
    """How long a stage goes on: a number of steps, or the wall time that another stage took.

    Example: `Budget(steps=100).progress(25, 0.0) == 0.25`.
    """

    steps: int | None = None
    seconds: float | None = None

    def progress(self, step: int, elapsed: float) -> float:
        """Share that is behind us, 0..1."""
        if self.seconds is not None:
            return min(elapsed / max(self.seconds, 1e-9), 1.0)
        assert self.steps is not None
        return step / self.steps

    def done(self, step: int, elapsed: float) -> bool:
        """Whether the stage is over."""
        return self.progress(step, elapsed) >= 1.0


def run_stage(
    context: Context,
    stage: StageConfig,
    method: Method,
    trainer: Trainer,
    budget: Budget,
    *,
    start: int,
    first_global: int,
    elapsed: float,
    save: Callable[[int, float], None],
) -> tuple[int, float]:
    """Train one stage from its step `start` to its end; returns its last step and the seconds it took in all.

    `first_global` is the global number of the stage's step 0; `save(step, elapsed)` writes a checkpoint.
    """
    step, began, before = start, time.perf_counter(), elapsed
    begin_anew(context.features)
    with _progress(context, stage) as (bar, task):
        while not budget.done(step, elapsed):
            progress = budget.progress(step, elapsed)
            step_began = time.perf_counter()
            with context.encoding():
                batch = method.collect(progress, first_global + step + 1)
            collected = time.perf_counter() - step_began
            metrics = dict(batch.metrics)
            if batch.learn is not None:
                metrics |= batch.learn(trainer, progress)
            elif context.backend.max(len(batch.rows)):
                with context.encoding():
                    metrics |= train_step(trainer, batch.rows, batch.objective, progress)
            metrics |= {"time/collect": collected, "time/total": time.perf_counter() - step_began}
            step += 1
            spent = context.backend.sum(time.perf_counter() - began) / context.backend.world_size
            elapsed = before + spent  # of all ranks: they must agree on when a stage is over
            if context.backend.is_main and (step % stage.logging_steps == 0 or step == 1):
                context.metrics.write(first_global + step, stage.name, metrics)
            bar.update(task, completed=budget.progress(step, elapsed), note=_note(metrics))
            context.quarantine.share(context.backend.gather)
            context.quarantine.check()  # by every rank at once: all of them know all rows
            if step % stage.save_steps == 0 and not budget.done(step, elapsed):
                save(step, elapsed)
                begin_anew(context.features)
    return step, elapsed


def _note(metrics: dict[str, float]) -> str:
    shown = ("loss", "reward", "accuracy", "completions/mean_length")
    return "  ".join(f"{name.split('/')[-1]} {metrics[name]:.3f}" for name in shown if name in metrics)


class _progress:
    """A rich progress bar for one stage; silent on every rank but the first."""

    def __init__(self, context: Context, stage: StageConfig) -> None:
        self.bar = Progress(
            TextColumn(f"[bold]{escape(stage.name)}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=context.console,
            disable=not context.backend.is_main,
        )

    def __enter__(self):
        self.bar.start()
        return self.bar, self.bar.add_task("", total=1.0, note="")

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
