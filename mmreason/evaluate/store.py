"""`eval.json` and the answers behind it: one block a stage, with its difference to every earlier stage."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmreason.evaluate.bootstrap import paired_bootstrap
from mmreason.evaluate.measures import parts, summarise
from mmreason.evaluate.roots import by_root, located, read_roots
from mmreason.evaluate.rows import EvalRow, read_rows, write_rows

FILE = "eval.json"


def read_eval(run_dir: Path) -> dict[str, dict[str, Any]]:
    """`before`, then stage names in the order they ran, each with its block; empty before the first."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def stage_rows(run_dir: Path, block: dict[str, Any]) -> list[EvalRow]:
    """The judged answers behind a stage's block, their media found where the run has them now."""
    path = run_dir / block["rows"] if block.get("rows") else None
    if path is None or not path.exists():
        return []
    roots = read_roots(run_dir)
    return [replace(row, media=tuple(located(row.media, roots))) for row in read_rows(path)]


def save_stage(
    run_dir: Path,
    stage: str,
    rows: Sequence[EvalRow],
    *,
    parent: str | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Summarise a stage, compare it with every earlier one, and add it to `eval.json` (atomically).

    Saving a stage again (a resumed run) replaces its block in place. `parent` is the stage it started from.
    Returns the stage's block: `summarise`'s keys, `rows`, `parent`, `deltas` (earlier stage -> `compare`).
    """
    stored = read_eval(run_dir)
    name = f"eval/{stage}.jsonl"
    roots = read_roots(run_dir)
    write_rows(run_dir / name, [replace(row, media=tuple(by_root(row.media, roots))) for row in rows])
    block: dict[str, Any] = {
        **summarise(rows),
        "rows": name,
        "parent": parent,
        "seconds": seconds,
        "deltas": {},
    }
    for earlier, other in stored.items():
        if earlier == stage:
            break
        before = stage_rows(run_dir, other)
        if before:
            block["deltas"][earlier] = compare(before, rows)
    stored[stage] = block
    write_json(run_dir / FILE, stored)
    return block


def compare(before: Sequence[EvalRow], after: Sequence[EvalRow], seed: int = 0) -> dict[str, Any]:
    """Accuracy of `after` minus `before` on the questions that both answered, with the paired bootstrap
    interval.

    Returns {overall: {mean, low, high, n}}, and by_group, by_modality, by_problem_type, by_source: {name: the same}.
    """
    was, now = (
        {(r.source, r.id): r.correct for r in rows if r.correct is not None} for rows in (before, after)
    )
    known = was.keys() & now.keys()
    both = [r for r in after if (r.source, r.id) in known]

    def difference(chosen: Sequence[EvalRow]) -> dict[str, float]:
        a, b = ([said[r.source, r.id] for r in chosen] for said in (was, now))
        return {**paired_bootstrap(a, b, seed=seed), "n": len(chosen)}

    if not both:
        return {}
    out: dict[str, Any] = {"overall": difference(both)}
    for key in ("group", "modality", "problem_type", "source"):
        out[f"by_{key}"] = {name: difference(part) for name, part in parts(both, key).items()}
    return out


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside and rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
