"""Held-out accuracy cut up: by problem type and difficulty, by form of question, thinking and length by difficulty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmreason.evaluate import LETTERS, SLICES, EvalRow, ablation_lines, blind_scores, measures, thirds
from mmreason.report.load import Run
from mmreason.report.stages import stage_colours, stage_label
from mmreason.report.svg import Series, line_chart
from mmreason.report.words import ablation_label, interval

DODGE = 0.07  # of the way from one third to the next
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
    """Group and modality x difficulty where there is more than one of them, then problem type x difficulty.

    The groups of a modality stand apart; all questions together are the first line of the first grid.
    """
    groups = _told(run, "group")
    split = ("modality", "group") if len(groups) > 1 else ("modality",)
    grids: list[Grid] = []
    for title, keys in (("Group", ("group",)), ("Modality", split), ("Problem type", ("problem_type",))):
        if len(_told(run, keys[0])) > (keys[0] != "problem_type"):
            kinds = sorted({_kind(row, keys) for rows in run.rows.values() for row in rows})
            grids.append(_grid(run, title, keys, kinds if grids or len(kinds) == 1 else [(), *kinds]))
    return grids


def _told(run: Run, key: str) -> set[str]:
    return {getattr(row, key) for rows in run.rows.values() for row in rows} - {""}


def _kind(row: EvalRow, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(getattr(row, key) for key in keys)


def _grid(run: Run, title: str, keys: Sequence[str], kinds: Sequence[tuple[str, ...]]) -> Grid:
    """A line for each of `kinds`, values of `keys`; () is every row."""
    last = list(run.evaluation)[-1]
    parts = thirds(run.rows[last])
    columns = [("all", "every difficulty")]
    columns += [(_third(i, len(parts)), f"{lo:.2f}\u2013{hi:.2f}") for i, (lo, hi, _) in enumerate(parts)]
    inside = [{(r.source, r.id) for r in part} for _, _, part in parts]
    rows: list[tuple[str, list[Cell | None]]] = []
    for kind in kinds:
        cells = [_cell(run, keys, kind, ids) for ids in [None, *inside]]
        rows.append((", ".join(kind).replace("_", " ") or "all", cells))
    return Grid(title, columns, rows)


def _cell(
    run: Run, keys: Sequence[str], kind: tuple[str, ...], ids: set[tuple[str, str]] | None
) -> Cell | None:
    """The rows whose `keys` are `kind` (every row for ()) and that are among `ids` (None: all of them)."""

    def keep(row: EvalRow) -> bool:
        return kind in ((), _kind(row, keys)) and (ids is None or (row.source, row.id) in ids)

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


@dataclass(frozen=True)
class Slice:
    """Some of the held-out questions; for each stage its accuracy, and its gain over the stage it started from."""

    name: str
    n: int
    chance: float | None
    cells: list[tuple[str, float | None, str]]  # (stage, accuracy, "+5.8 (+2.5 to +9.2)")


def slices(run: Run) -> list[tuple[str, list[Slice]]]:
    """(title, lines) by group, modality and data source, where there is more than one of them."""
    last = run.evaluation[run.line[-1]] if run.line else {}
    out = []
    for key in SLICES:
        if len(last.get(key, ())) > 1:
            title = key.removeprefix("by_").capitalize()
            out.append((title, [_slice(run, key, name, block) for name, block in last[key].items()]))
    return out


def _slice(run: Run, key: str, name: str, block: dict[str, Any]) -> Slice:
    cells = []
    for stage, said in run.evaluation.items():
        parent = run.parent(stage)
        delta = run.difference(parent, stage).get(key, {}).get(name) if parent else None
        accuracy = said.get(key, {}).get(name, {}).get("accuracy")
        cells.append((stage_label(run, stage), accuracy, interval(delta) if delta else ""))
    return Slice(name, block["n"], block["chance"], cells)


@dataclass(frozen=True)
class Form:
    """One form of question in one modality, with the accuracy of each stage."""

    modality: str
    kind: str
    n: int
    chance: float | None
    accuracies: list[float | None]


def forms(run: Run) -> list[Form]:
    """By modality, there the best answered first; empty when the rows name no forms."""
    if not run.evaluation or not run.line:
        return []
    last = run.line[-1]
    if not {r.kind for r in run.rows[last]} - {r.problem_type for r in run.rows[last]}:
        return []
    parts = {stage: _by_form(rows) for stage, rows in run.rows.items()}
    out = []
    for (modality, kind), block in parts[last].items():
        said = [part.get((modality, kind), {}).get("accuracy") for part in parts.values()]
        out.append(Form(modality, kind, block["n"], block["chance"], said))
    at = list(parts).index(last)
    return sorted(out, key=lambda form: (form.modality, -(form.accuracies[at] or 0.0), form.kind))


def _by_form(rows: Sequence[EvalRow]) -> dict[tuple[str, str], dict[str, Any]]:
    blind = blind_scores(rows)
    parts: dict[tuple[str, str], list[EvalRow]] = defaultdict(list)
    for row in rows:
        parts[row.modality, row.kind].append(row)
    return {form: measures(part, blind) for form, part in parts.items()}


@dataclass(frozen=True)
class Deprived:
    """One modality's questions asked again without a sense, or with letters."""

    what: str  # "image blanked"
    modality: str
    n: int
    chance: float | None
    plain: float | None
    ablated: float | None
    difference: str  # "-48.3 (-55.0 to -41.7)"


def deprived(run: Run) -> list[Deprived]:
    """What `ablations.json` says about each modality without a sense, in the order it was asked."""
    return [line for name, line in _asked_again(run) if name != LETTERS]


def relettered(run: Run) -> list[Deprived]:
    """What `ablations.json` says about each modality's questions whose options got letters."""
    return [line for name, line in _asked_again(run) if name == LETTERS]


def _asked_again(run: Run) -> list[tuple[str, Deprived]]:
    return [
        (
            line["name"],
            Deprived(
                what=ablation_label(line["name"]),
                modality=line["modality"],
                n=line["n"],
                chance=line["chance"],
                plain=line["plain"],
                ablated=line["ablated"],
                difference=interval(line["delta"]),
            ),
        )
        for line in ablation_lines(run.ablations)
    ]


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
        out: list[Series] = []
        for name, parts in blocks.items():
            aside = DODGE * (len(out) - (len(blocks) - 1) / 2)  # stages that agree would hide each other
            points = [(i + aside, part[key]) for i, part in enumerate(parts) if part.get(key) is not None]
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
