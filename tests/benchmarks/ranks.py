"""Tokens a second and the largest resident set of GRPO in one and in two processes of one thread each.

    python tests/benchmarks/ranks.py --json F [--processes 1 2] [--deepspeed zero2] [--steps 12]

Each process keeps its work: two of them learn from twice as many groups. Every number is of the same run: the median of
steps but the first two (`tokens/forward` over `time/total`, all processes together), the same tokens over the processor
seconds of all processes in these steps, and for each process the most that it had resident. Seconds on the wall tell
something on as many cores as processes and an otherwise quiet machine (`taskset -c 0,1`); the others elsewhere too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from mmreason.bench.measure import environment
from mmreason.bench.work import Shape, checkpoint, grpo_recipe, rows
from mmreason.recipe import dump_recipe

FIRST = 2  # steps that are not counted


def main() -> None:
    """Measure, print, and write `--json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--deepspeed", help="as the recipe's key; default: DDP")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--image-tokens", type=int, default=256)
    given = parser.parse_args()
    shape = Shape(image_tokens=given.image_tokens, new_tokens=32, prompts=2)
    found = [measured(shape, n, given.steps, given.deepspeed) for n in given.processes]
    text = json.dumps({"runs": found, "shape": shape.as_dict(), "environment": environment()}, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def measured(shape: Shape, processes: int, steps: int, deepspeed: str | None) -> dict[str, Any]:
    """`{processes, tokens_a_second, step_s, peak_rss: [bytes of each process], ...}`."""
    with TemporaryDirectory(prefix="mmreason-ranks-") as name:
        folder = Path(name)
        checkpoint(shape, folder / "model")
        rows(replace(shape, prompts=shape.prompts * processes), folder)
        recipe = grpo_recipe(shape, folder, "auto")
        (stage,) = recipe.stages
        stage.max_steps, stage.evaluate, stage.save_steps = steps, False, steps
        recipe.num_threads, recipe.deepspeed = 1, deepspeed
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "mmreason.cli", "launch", str(folder / "recipe.yaml")]
        log = folder / "auto" / "metrics.jsonl"
        peaks, cpu = watched([*command, "--nproc", str(processes)], processes, log, steps)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    counted = lines[FIRST:]
    return {
        "processes": processes,
        "deepspeed": deepspeed,
        "tokens_a_second": statistics.median(m["tokens/forward"] / m["time/total"] for m in counted),
        "tokens_a_cpu_second": sum(m["tokens/forward"] for m in counted) / cpu,
        "step_s": statistics.median(m["time/total"] for m in counted),
        "rollout_s": statistics.median(m["time/collect"] for m in counted),
        "peak_rss": peaks,
        "steps": len(counted),
    }


def watched(command: list[str], processes: int, log: Path, steps: int) -> tuple[list[int], float]:
    """Run it; the most bytes that each of its training processes had resident, and processor seconds of all of them
    from the FIRST line of `log` on to that of the last step.
    """
    run = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peaks: dict[int, int] = {}
    taken: dict[int, dict[int, float]] = {}  # lines that were written -> the first seen of each process
    while run.poll() is None:
        written = log.read_text().count("\n") if log.is_file() else 0
        for child in psutil.Process(run.pid).children(recursive=True):
            try:
                if "train" in child.cmdline():
                    peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
                    times = child.cpu_times()
                    taken.setdefault(written, {}).setdefault(child.pid, times.user + times.system)
            except psutil.Error:  # it has ended meanwhile
                continue
        time.sleep(0.05)
    if run.returncode or len(peaks) != processes:
        raise SystemExit(
            f"{' '.join(command)} ended with {run.returncode}, {len(peaks)} training processes seen"
        )
    return sorted(peaks.values()), sum(taken[steps].values()) - sum(taken[FIRST].values())


if __name__ == "__main__":
    main()
