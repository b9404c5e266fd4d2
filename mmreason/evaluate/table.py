"""The table on the screen: what each stage scores against chance, and how sure its gain is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmreason.evaluate.ablate import LETTERS, ablation_lines

SLICES = ("by_group", "by_modality", "by_source")


def table(stored: Mapping[str, Mapping[str, Any]], title: str = "Held-out questions") -> Table:
    """A rich table of `eval.json`'s content: a column a stage, a row a slice; accuracies in percent.

    Below the overall accuracy stands each stage's difference to the stage it started from, in points, with
    its 95% paired bootstrap interval.
    """
    stages = list(stored)
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("accuracy, %", no_wrap=True)
    out.add_column("n", justify="right", style="dim")
    out.add_column("chance", justify="right", style="dim")
    for stage in stages:
        out.add_column(stage, justify="right", overflow="fold")
    if not stages:
        return out
    last = stored[stages[-1]]
    _row(out, "overall", last["overall"], [stored[s]["overall"] for s in stages], style="bold")
    gains = [_gain(stored, s) for s in stages]
    for name, line in zip(("  gain", "  95% interval", "  against"), zip(*gains, strict=True), strict=True):
        out.add_row(name, "", "", *line)
    out.add_section()
    for key in (*SLICES, "by_problem_type"):
        if key == "by_problem_type" or len(last.get(key, ())) > 1:
            for name, block in last[key].items():
                _row(out, name, block, [stored[s].get(key, {}).get(name) for s in stages])
            out.add_section()
    words = ("easy", "middle", "hard") if len(last["by_difficulty"]) == 3 else ("part 1", "part 2")
    for i, block in enumerate(last["by_difficulty"]):
        name = f"{words[i]} {block['lo']:.2f}-{block['hi']:.2f}"
        parts = [stored[s]["by_difficulty"] for s in stages]
        _row(out, name, block, [p[i] if i < len(p) else None for p in parts])
    out.add_section()
    overall = [stored[s]["overall"] for s in stages]
    for name, key, scale, digits in (
        ("soft score, %", "soft", 100, 1),
        ("format, %", "format", 100, 1),
        ("hedging, %", "hedge_rate", 100, 1),
        ("thinks, %", "think_rate", 100, 1),
        ("tokens", "mean_length", 1, 1),
    ):
        out.add_row(name, "", "", *[_number(block.get(key), scale, digits) for block in overall])
    return out


def gain_table(stored: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Each stage's gain in each group, modality and source, in points with its 95% interval; None of one of each."""
    stages = [(s, parent) for s in stored if (parent := parent_of(stored, s))]
    deltas = [stored[s].get("deltas", {}).get(parent, {}) for s, parent in stages]
    keys = [key for key in SLICES if any(len(delta.get(key, ())) > 1 for delta in deltas)]
    if not keys:
        return None
    title = "Gains, points of accuracy [95% interval]"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("questions", no_wrap=True)
    for stage, parent in stages:
        out.add_column(f"{stage} on {parent}", justify="right")
    for key in keys:
        out.add_section()
        names = dict.fromkeys(name for delta in deltas for name in delta.get(key, ()))
        for name in names:
            out.add_row(name, *[_change(delta.get(key, {}).get(name)) for delta in deltas])
    return out


def ablation_table(ablations: Mapping[str, Mapping[str, Any]]) -> Group:
    """Rich tables of `ablation_block`s: what is left of each modality's accuracy without a sense, and with letters."""
    lines = ablation_lines(ablations)
    senses = [line for line in lines if line["name"] != LETTERS]
    words = [line for line in lines if line["name"] == LETTERS]
    tables = []
    if senses:
        tables.append(_again("Without a sense", ("taken away", "with", "without"), senses))
    if words:
        tables.append(_again("Options with letters", ("asked", "named", "lettered"), words))
    return Group(*tables)


def _again(title: str, names: tuple[str, str, str], lines: Sequence[Mapping[str, Any]]) -> Table:
    """Questions that were asked twice; `names` are those of the first column and of the two accuracies."""
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column(names[0], no_wrap=True)
    out.add_column("modality", no_wrap=True)
    for name in ("n", "chance", *names[1:], "difference", "95% interval"):
        out.add_column(name, justify="right", no_wrap=True, style="dim" if name in ("n", "chance") else "")
    for line in lines:
        shares = [_number(line[key], 100, 1) for key in ("chance", "plain", "ablated")]
        delta = line["delta"]
        gains = ["-", "-"]
        if delta:
            gains = [f"{100 * delta['mean']:+.1f}", f"{100 * delta['low']:+.1f}..{100 * delta['high']:+.1f}"]
        out.add_row(line["name"], line["modality"], str(line["n"]), *shares, *gains)
    return out


def parent_of(stored: Mapping[str, Mapping[str, Any]], stage: str) -> str | None:
    """The earlier stage a difference is shown against: the one it started from, else the one before it."""
    names = list(stored)
    parent = stored[stage].get("parent")
    if parent in names:
        return parent
    at = names.index(stage)
    return names[at - 1] if at else None


def _row(out: Table, name: str, block: Mapping[str, Any], cells: list[Any], style: str = "") -> None:
    values = [_number(cell["accuracy"], 100, 1) if cell else "-" for cell in cells]
    out.add_row(name, str(block["n"]), _number(block.get("chance"), 100, 1), *values, style=style)


def _gain(stored: Mapping[str, Mapping[str, Any]], stage: str) -> tuple[Text, Text, Text]:
    """Mean, interval and the stage it is held against; empty for a stage that has none."""
    parent = parent_of(stored, stage)
    delta = stored[stage].get("deltas", {}).get(parent, {}).get("overall") if parent else None
    if not delta or not parent:
        return Text(), Text(), Text()
    mean, low, high = (100 * delta[k] for k in ("mean", "low", "high"))
    style = _style(delta)
    return Text(f"{mean:+.1f}", style), Text(f"{low:+.1f}..{high:+.1f}", style), Text(parent, "dim")


def _change(delta: Mapping[str, float] | None) -> Text:
    """`+5.8 [2.5, 9.2]`; empty where no question was answered twice."""
    if not delta:
        return Text()
    mean, low, high = (100 * delta[k] for k in ("mean", "low", "high"))
    return Text(f"{mean:+.1f} [{low:.1f},\u00a0{high:.1f}]", _style(delta))


def _style(delta: Mapping[str, float]) -> str:
    return "green" if delta["low"] > 0 else "red" if delta["high"] < 0 else "yellow"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"
