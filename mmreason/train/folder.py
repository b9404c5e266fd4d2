"""The run directory: opening it, refusing to mix two recipes in it, and the small files a run leaves there."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from mmreason.evaluate import read_eval, write_json
from mmreason.evaluate.roots import FILE, roots_of
from mmreason.model.save import save_model, write_probe
from mmreason.recipe import dump_recipe, load_recipe
from mmreason.schema import Recipe
from mmreason.train.checkpoint import checkpoints
from mmreason.train.context import Context
from mmreason.train.prepare import whole_model
from mmreason.types import Rendered

log = logging.getLogger(__name__)
# What may change between the first start of a run and its resumption without changing what it computes.
FREE_KEYS = (
    "save_total_limit",
    "report_to",
    "resume_from_checkpoint",
    "save_steps",
    "logging_steps",
    "ddp_timeout",
    "max_bad_fraction",
    "on_bad_media",
    "max_decode_seconds",
    "dataloader_num_workers",
    "base_url",
    "timeout",
    "max_wait",
    "max_concurrency",
    "weights_dir",
    "output_dir",  # the folder was moved, or is spelt in another way
)
ROWS = ("per_device_train_batch_size", "gradient_accumulation_steps")  # of a step, in one process
_PACKAGES = (
    "mmreason",
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "peft",
    "qwen-vl-utils",
    "pillow",
    "numpy",
)


def open_run(recipe: Recipe, run_dir: Path) -> None:
    """Create the run directory, or check that what lies there is the same run.

    Another recipe's run that never came to a checkpoint is replaced: its measurements must not pass for this run's.

    Raises:
        ValueError: the folder holds a run of another recipe, or a run that must not be resumed.
    """
    stored = run_dir / "recipe.yaml"
    rank = int(os.environ.get("RANK", 0))
    if stored.exists():
        if not recipe.resume_from_checkpoint and any(run_dir.glob("checkpoint-*")):
            raise ValueError(
                f"{run_dir} holds a run and resume_from_checkpoint is false; take another output_dir or remove it"
            )
        before = yaml.safe_load(
            dump_recipe(load_recipe(stored))
        )  # keys that are newer than the run have defaults
        now = yaml.safe_load(dump_recipe(recipe))
        begun = any(run_dir.glob("checkpoint-*"))
        _settle_threads(before, now, run_dir, warn=begun and rank == 0)
        advice = _settle_rows(before, now, run_dir)
        changed = differences(before, now)
        if changed and begun:
            raise ValueError(
                f"{run_dir} holds a run of another recipe:\n  "
                + "\n  ".join(changed)
                + "\ntake another output_dir, "
                f"or put these keys back to go on with that run{advice}"
            )
        if changed and rank == 0:
            _forget(run_dir)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        beside = stored.with_name(".recipe.yaml.writing")
        beside.write_text(dump_recipe(recipe))
        beside.replace(stored)
        write_json(run_dir / "environment.json", environment(recipe))


def _settle_threads(before: dict[str, Any], now: dict[str, Any], run_dir: Path, *, warn: bool) -> None:
    """Put the number of threads that counts into both recipes, in place: float sums depend on it.

    Where neither names a number, the machine's may change: the run goes on with a warning, and is then not to the bit
    the run that was never killed.
    """
    record = run_dir / "environment.json"
    known = json.loads(record.read_text())["torch_threads"] if record.exists() else torch.get_num_threads()
    pinned = before["num_threads"] is not None or now["num_threads"] is not None
    was, given = before["num_threads"] or known, now["num_threads"] or torch.get_num_threads()
    if pinned:
        before["num_threads"], now["num_threads"] = was, given
    elif warn and was != given:
        log.warning(
            "%s was begun with %d threads and goes on with %d, which can change sums in their last bits; "
            "set num_threads=%d for the very same run",
            *(run_dir, was, given, was),
        )


def _settle_rows(before: dict[str, Any], now: dict[str, Any], run_dir: Path) -> str:
    """Compare the rows of each stage's step with the newest checkpoint's, in place of what one process learns from.

    Another number of processes may say the same in another way. Returns what to say should they differ.
    """
    stored = [path for folder in checkpoints(run_dir) if (path := folder / "trainer_state.json").is_file()]
    if not stored:
        return ""
    state, processes = json.loads(stored[-1].read_text()), int(os.environ.get("WORLD_SIZE", 1))
    known = state.get("rows_of_a_step", {})
    for was, stage in zip(before["stages"], now["stages"], strict=False):
        if stage["name"] in known:
            was["rows of a step"], stage["rows of a step"] = (
                known[stage["name"]],
                rows_of_a_step(stage, processes),
            )
            for key in ROWS:
                del was[key], stage[key]
    if state["world_size"] == processes:
        return ""
    return (
        f"; it had {state['world_size']} process(es) and this start has {processes}: choose "
        f"{' and '.join(ROWS)} so that all processes together learn from as many rows a step as before"
    )


def rows_of_a_step(stage: Mapping[str, Any], processes: int) -> int:
    """Rows that a stage's step learns from in all processes together."""
    return math.prod(stage[key] for key in ROWS) * processes


def _forget(run_dir: Path) -> None:
    """Remove what another run has measured; its data stay, since sources check by themselves what lies there."""
    for name in ("eval", "completions", "stages"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in (
        "eval.json",
        "ablations.json",
        "metrics.jsonl",
        "quarantine.jsonl",
        "timing.json",
        "report.html",
    ):
        (run_dir / name).unlink(missing_ok=True)


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Keys that differ, one line each, except FREE_KEYS."""
    if path.rsplit(".", 1)[-1] in FREE_KEYS or before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            line for k in keys for line in differences(before.get(k), now.get(k), f"{path}.{k}".lstrip("."))
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}.{i}")]
    return [f"{path}: was {before!r}, now {now!r}"]


def environment(recipe: Recipe) -> dict[str, Any]:
    """Versions and machine, as they bear on the numbers."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": recipe.num_threads or torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": versions,
    }


def write_roots(context: Context) -> None:
    """`media_roots.json`: where the media of each source lie, for the answers that name them."""
    roots = {
        name: ref.root
        for name, samples in context.sources.items()
        for ref in [ref for sample in samples for ref in sample.media][:1]
    }
    write_json(context.run_dir / FILE, roots_of(context.run_dir, roots))


def write_timing(run_dir: Path, seconds: dict[str, float], total: float, peak: int) -> None:
    """`timing.json`: wall time of each stage's training and of the run, and the peak memory (PSS of the tree)."""
    write_json(run_dir / "timing.json", {"stages": seconds, "total_s": total, "peak_memory_bytes": peak})


def write_model(context: Context, out: Path) -> None:
    """The final model (adapters merged) and, beside its weights, the probe that proves a load."""
    model = whole_model(context)
    save_model(model, context.processor, out, merge=True)
    write_probe(model, context.family, probe_rows(context), out)


def probe_rows(context: Context) -> dict[str, Rendered]:
    """One rendered row for each modality that the run's data have."""
    rows: dict[str, Rendered] = {}
    for name in [*context.recipe.eval.data, *context.sources]:
        for sample in context.sources[name]:
            if sample.modality in rows:
                continue
            rendered = context.feed.prompt(sample)
            if rendered is not None:
                rows[sample.modality] = rendered
    return rows


__all__ = [
    "differences",
    "environment",
    "open_run",
    "probe_rows",
    "read_eval",
    "write_model",
    "write_roots",
    "write_timing",
]
