"""Held-out accuracy cut up: by problem type and difficulty, by form of question, thinking and length by difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmreason.evaluate import EvalRow, blind_scores, measures, thirds
from mmreason.report.load import Run
from mmreason.report.svg import Series, line_chart
from mmreason.report.verdict import stage_colours, stage_label

THIRDS = ("easy", "middle", "hard")


@dataclass(frozen=True)
class Cell:
    """One slice: bars of (colour class, stage, accuracy or None), chance, and how many questions it holds."""

    n: int
    chance: float | None
    bars: list[tuple[str, str, float | None]]


@dataclass(frozen=True)
class Grid:
    """A titled table of cells; `columns` are (name, detail)."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell | None]]]


def accuracy_grids(run: Run) -> list[Grid]:
    """Problem type x difficulty, then modality x difficulty where there is more than one modality."""
    grids = []
    for title, key in (("Problem type", "problem_type"), ("Modality", "modality")):
        names = sorted({getattr(row, key) for rows in run.rows.values() for row in rows})
        if names and (key == "problem_type" or len(names) > 1):
            grids.append(_grid(run, title, key, names))
    return grids


def _grid(run: Run, title: str, key: str, names: Sequence[str]) -> Grid:
    last = list(run.evaluation)[-1]
    parts = thirds(run.rows[last])
    columns = [("all", "every difficulty")]
    columns += [(_third(i, len(parts)), f"{lo:.2f}\u2013{hi:.2f}") for i, (lo, hi, _) in enumerate(parts)]
    inside = [{(r.source, r.id) for r in part} for _, _, part in parts]
    rows: list[tuple[str, list[Cell | None]]] = []
    for name in ["all", *names] if len(names) > 1 else names:
        cells = [_cell(run, key, name, ids) for ids in [None, *inside]]
        rows.append((name.replace("_", " "), cells))
    return Grid(title, columns, rows)


def _cell(run: Run, key: str, name: str, ids: set[tuple[str, str]] | None) -> Cell | None:
    """The rows whose `key` is `name` (every row for "all") and that are among `ids` (None: all of them)."""

    def keep(row: EvalRow) -> bool:
        return name in ("all", getattr(row, key)) and (ids is None or (row.source, row.id) in ids)

    colours = stage_colours(run)
    parts = {stage: [row for row in rows if keep(row)] for stage, rows in run.rows.items()}
    if not any(parts.values()):
        return None
    said = {stage: measures(rows, blind_scores(run.rows[stage])) for stage, rows in parts.items()}
    last = list(said.values())[-1]
    bars = [(colours[stage], stage_label(run, stage), m["accuracy"]) for stage, m in said.items()]
    return Cell(last["n"], last["chance"], bars)


def _third(index: int, parts: int) -> str:
    return THIRDS[index] if parts == 3 else f"part {index + 1}"


def kinds_table(run: Run) -> list[tuple[str, int, float | None, list[float | None]]]:
    """(form of question, n, chance, accuracy of each stage); empty when the rows name no forms."""
    blocks = run.evaluation
    if not blocks:
        return []
    kinds = list(blocks.values())[-1].get("by_kind", {})
    types = list(blocks.values())[-1].get("by_problem_type", {})
    if not set(kinds) - set(types):
        return []
    out = []
    for kind, last in kinds.items():
        accuracies = [block.get("by_kind", {}).get(kind, {}).get("accuracy") for block in blocks.values()]
        out.append((kind, last["n"], last["chance"], accuracies))
    last = list(blocks).index(run.line[-1]) if run.line else -1
    return sorted(out, key=lambda row: -(row[3][last] or 0.0))


def habits(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """(label, overall measures) of each evaluated stage."""
    return [(stage_label(run, name), block["overall"]) for name, block in run.evaluation.items()]


def thinking_charts(run: Run) -> list[tuple[str, str, Markup]]:
    """(title, note, chart): think rate and mean length over the thirds of difficulty, a line for each stage."""
    blocks = {name: b["by_difficulty"] for name, b in run.evaluation.items() if b.get("by_difficulty")}
    if not blocks:
        return []
    most = max(len(parts) for parts in blocks.values())
    labels = [_third(i, most) for i in range(most)]
    colours = stage_colours(run)

    def lines(key: str) -> list[Series]:
        out = []
        for name, parts in blocks.items():
            points = [(float(i), part[key]) for i, part in enumerate(parts) if part.get(key) is not None]
            out.append(Series(stage_label(run, name), points, colours[name]))
        return out

    charts = []
    for title, key, note, share in (
        ("Think rate", "think_rate", "share of answers whose thought is not empty", True),
        ("Mean length", "mean_length", "tokens of the whole completion", False),
        ("Accuracy", "accuracy", "exact", True),
    ):
        bounds = (0.0, 1.0 if share else None)
        label = f"{title} by difficulty"
        chart = line_chart(lines(key), label=label, bounds=bounds, x_labels=labels, percent=share)
        charts.append((f"{title} by difficulty", note, chart))
    return charts
