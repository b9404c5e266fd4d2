"""Where a run's numbers go: metrics.jsonl, the optional trackers, and the memory of the process tree."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 1.0  # seconds between two looks at the memory
SHARE = 0.005  # of the time that looking may take: where it is slow, it is done less often


def memory_bytes() -> int:
    """PSS summed over the process tree, in bytes (RSS where the system has no PSS).

    The tree is this process and its children; under torchrun it is the launcher's, with every rank of this machine.
    """
    root = psutil.Process(os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a child that just ended
            continue
        total += getattr(info, "pss", 0) or info.rss
    return total


class MemoryWatch:
    """The largest `memory_bytes` so far, seen by a thread of its own: in training, evaluation and saving alike.

    The thread ends with `close`, or with the last reference to the watch.
    """

    def __init__(self, interval: float | None = None) -> None:
        self._peak = [memory_bytes()]  # shared with the thread, which must not hold the watch itself
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_watch, args=(self._peak, self._stop, interval or INTERVAL), name="memory", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, self._stop.set)

    @property
    def peak(self) -> int:
        """Bytes."""
        return self._peak[0]

    def close(self) -> None:
        """End the thread, after a last look."""
        self._stop.set()
        self._thread.join()


def _watch(peak: list[int], stop: threading.Event, interval: float) -> None:
    while True:
        began = time.perf_counter()
        peak[0] = max(peak[0], memory_bytes())
        if stop.wait(max(interval, (time.perf_counter() - began) / SHARE)):
            peak[0] = max(peak[0], memory_bytes())
            return


class Metrics:
    """Appends one line a step to metrics.jsonl and mirrors it to the trackers the recipe names.

    On resume, `keep_until(step)` drops the lines that the killed run wrote after its last checkpoint.
    """

    def __init__(self, path: Path, report_to: Sequence[str], run_name: str) -> None:
        self.path = path
        self._peak_before = 0  # of the run that this one goes on with
        self._memory: MemoryWatch | None = None
        self._trackers = [_tracker(name, path.parent, run_name) for name in report_to if name != "none"]

    def watch_memory(self) -> None:
        """Begin to look at the memory, once in a while until `close`."""
        self._memory = MemoryWatch()

    @property
    def peak_memory(self) -> int:
        """Bytes: the most that was seen since `watch_memory`, or by the run before that was killed."""
        return max(self._peak_before, self._memory.peak if self._memory is not None else 0)

    def close(self) -> None:
        """Stop looking at the memory."""
        if self._memory is not None:
            self._memory.close()

    def keep_until(self, step: int) -> None:
        """Keep lines up to and including global step `step`; a last line torn by a kill goes too."""
        if not self.path.exists():
            return
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1].splitlines()
        read = [(json.loads(line), line) for line in whole]
        lines = [line for values, line in read if values["step"] <= step]
        self._peak_before = max((values.get("memory/pss") or 0 for values, _ in read), default=0)
        beside = self.path.with_suffix(".tmp")
        beside.write_text("".join(line + "\n" for line in lines))
        beside.replace(self.path)

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> dict[str, Any]:
        """Write one line; a value that is not finite is written as null, since JSON has no NaN."""
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
