"""The peak of memory: of the whole process tree, at any moment, and over a kill."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.train import evaluation, metrics
from mmreason.train.metrics import MemoryWatch, Metrics, memory_bytes
from mmreason.train.run import train
from tests.train import small

MB = 2**20


def test_an_allocation_that_comes_and_goes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SHARE", 0.5)
    watch = MemoryWatch(interval=0.02)
    before = memory_bytes()
    block = np.ones(200 * MB, dtype=np.uint8)
    time.sleep(0.3)
    del block
    assert memory_bytes() < before + 100 * MB
    watch.close()
    assert before + 190 * MB < watch.peak < before + 300 * MB


def test_children_count() -> None:
    before = memory_bytes()
    code = "x = bytearray(b'x') * (150 << 20); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    during = memory_bytes()
    child.communicate(b"\n")
    assert during > before + 145 * MB > memory_bytes()


def test_the_thread_ends_with_its_watch() -> None:
    watch = MemoryWatch(interval=0.02)
    assert [t.name for t in threading.enumerate()].count("memory") == 1
    thread = watch._thread
    del watch
    gc.collect()
    thread.join(2)
    assert not thread.is_alive()


def test_looking_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes 5 ms is not repeated for a second, however short the interval is."""
    looks: list[float] = []

    def slow() -> int:
        looks.append(time.perf_counter())
        time.sleep(0.005)
        return 1

    monkeypatch.setattr(metrics, "memory_bytes", slow)
    watch = MemoryWatch(interval=0.001)
    time.sleep(0.5)
    assert len(looks) == 2  # at the start, of which one by the thread
    watch.close()
    assert len(looks) == 3


def test_a_peak_in_evaluation_is_in_the_runs_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "INTERVAL", 0.02)
    monkeypatch.setattr(metrics, "SHARE", 0.5)
    small.without_probe(monkeypatch)
    greedy = evaluation.greedy

    def hungry(context: Any) -> Any:
        block = np.ones(300 * MB, dtype=np.uint8)
        time.sleep(0.2)
        del block
        return greedy(context)

    monkeypatch.setattr(evaluation, "greedy", hungry)
    before = memory_bytes()
    train(small.recipe(tmp_path / "run", stages=[small.SFT | {"max_steps": 1}]))
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["peak_memory_bytes"] > before + 290 * MB
    assert memory_bytes() < before + 250 * MB


def test_the_peak_of_a_killed_run_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "memory/pss": 5}\n{"step": 2, "memory/pss": 7}\n{"step": 3, "mem')
    later = Metrics(path, [], "run")
    later.keep_until(1)
    assert later.peak_memory == 7
    assert path.read_text() == '{"step": 1, "memory/pss": 5}\n'
