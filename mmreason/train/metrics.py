"""Where a run's numbers go: metrics.jsonl, the optional trackers, and the memory of the process tree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil


def memory_bytes() -> int:
    """PSS summed over this process and its children, in bytes (RSS where the system has no PSS)."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a child that just ended
            continue
        total += getattr(info, "pss", 0) or info.rss
    return total


class Metrics:
    """Appends one line a step to metrics.jsonl and mirrors it to the trackers the recipe names.

    On resume, `keep_until(step)` drops the lines that the killed run wrote after its last checkpoint.
    """

    def __init__(self, path: Path, report_to: Sequence[str], run_name: str) -> None:
        self.path = path
        self.peak_memory = 0
        self._trackers = [_tracker(name, path.parent, run_name) for name in report_to if name != "none"]

    def keep_until(self, step: int) -> None:
        """Keep lines up to and including global step `step`; a last line torn by a kill goes too."""
        if not self.path.exists():
            return
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        lines = [line for line in whole if json.loads(line)["step"] <= step]
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(line + "\n" for line in lines))
        beside.replace(self.path)

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> dict[str, Any]:
        """Write one line; a value that is not finite is written as null, since JSON has no NaN."""
        self.peak_memory = max(self.peak_memory, memory_bytes())
        line: dict[str, Any] = {"step": step, "stage": stage}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        line["memory/pss"] = self.peak_memory
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker(step, {k: v for k, v in line.items() if isinstance(v, int | float)})
        return line


def _tracker(name: str, folder: Path, run_name: str) -> Any:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))

        def to_tensorboard(step: int, values: Mapping[str, float]) -> None:
            for key, value in values.items():
                writer.add_scalar(key, value, step)

        return to_tensorboard
    import wandb

    run = wandb.init(project="mmreason", name=run_name, dir=str(folder))
    return lambda step, values: run.log(dict(values), step=step)
