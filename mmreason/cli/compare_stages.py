"""What each stage of one recipe reaches and gains over several seeds: overall, by group, by modality."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mmreason.evaluate import EvalRow, crossed_bootstrap, parent_of, parts, read_eval, stage_rows

Question = tuple[str, str]  # source, id
KEYS = ("group", "modality")


def stage_gains(folders: Sequence[Path], branches: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each slice of the held-out questions that every stage of every run answered.

    `folders` are finished runs of one recipe, a seed each; `branches` its stages off the main line. A line is {name, n,
    accuracy: {stage: mean over the seeds}, gains: {"grpo on sft": {mean, low, high, by_seed}}}: of each stage over the
    one it started from, and of the main line's end over each branch. Empty where fewer than two stages were evaluated.
    """
    stored = read_eval(folders[0])
    verdicts = [
        {stage: _verdicts(stage_rows(folder, block)) for stage, block in read_eval(folder).items()}
        for folder in folders
    ]
    asked = stage_rows(folders[0], stored[next(iter(stored))])
    known = [
        row for row in asked if all((row.source, row.id) in said for run in verdicts for said in run.values())
    ]
    if len(stored) < 2 or not known or any(run.keys() != stored.keys() for run in verdicts):
        return []
    pairs = [(stage, parent) for stage in stored if (parent := parent_of(stored, stage))]
    last = [stage for stage in stored if stage not in branches][-1]
    pairs += [(last, branch) for branch in branches if branch in stored]
    lines = []
    for name, rows in _slices(known):
        questions = [(row.source, row.id) for row in rows]
        table = {stage: [[run[stage][q] for q in questions] for run in verdicts] for stage in stored}
        means = {stage: [statistics.fmean(seed) for seed in seeds] for stage, seeds in table.items()}
        lines.append(
            {
                "name": name,
                "n": len(questions),
                "accuracy": {stage: statistics.fmean(seeds) for stage, seeds in means.items()},
                "gains": {f"{a} on {b}": _gain(table[b], table[a]) for a, b in pairs},
            }
        )
    return lines


def stage_tables(recipe: str, seeds: int, lines: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """`stage_gains` as two tables: accuracies in percent, then gains in points with their 95% intervals."""
    if not lines:
        return
    out = _table(
        f"{recipe}: exact accuracy, %, mean of {seeds} seeds" if seeds > 1 else f"{recipe}: exact accuracy, %"
    )
    for stage in lines[0]["accuracy"]:
        out.add_column(stage, justify="right")
    for line in lines:
        out.add_row(line["name"], str(line["n"]), *[f"{100 * v:.1f}" for v in line["accuracy"].values()])
    yield out
    drawn = "questions and seeds" if seeds > 1 else "questions"
    out = _table(f"{recipe}: gains, points [95% interval over {drawn}]")
    for pair in lines[0]["gains"]:
        out.add_column(pair, justify="right")
    for line in lines:
        said = ([100 * gain[k] for k in ("mean", "low", "high")] for gain in line["gains"].values())
        cells = (f"{mean:+.1f} [{low:.1f},\u00a0{high:.1f}]" for mean, low, high in said)
        out.add_row(line["name"], str(line["n"]), *cells)
    yield out


def _table(title: str) -> Table:
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("questions", no_wrap=True)
    out.add_column("n", justify="right", style="dim")
    return out


def _verdicts(rows: Sequence[EvalRow]) -> dict[Question, float]:
    return {(row.source, row.id): row.correct for row in rows if row.correct is not None}


def _slices(rows: Sequence[EvalRow]) -> Iterator[tuple[str, Sequence[EvalRow]]]:
    """All; then each group, and each modality in each group, where there is more than one."""
    yield "overall", rows
    groups = parts(rows, "group")
    if len(groups) > 1:
        yield from groups.items()
    else:
        groups = {"": list(rows)}
    for name, part in groups.items():
        modalities = parts(part, "modality")
        for modality, own in modalities.items() if len(modalities) > 1 else ():
            yield f"{name} {modality}".strip(), own


def _gain(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of two tables of verdicts, a line a seed and a column a question."""
    apart = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(after, before, strict=True)]
    return {**crossed_bootstrap(apart), "by_seed": [statistics.fmean(line) for line in apart]}
