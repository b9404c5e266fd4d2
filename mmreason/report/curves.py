"""Learning curves: which numbers of metrics.jsonl share a chart, and what a reader should look for in it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mmreason.report.load import Run
from mmreason.report.svg import Series, line_chart
from mmreason.report.words import number, percent


@dataclass(frozen=True)
class Spec:
    """One chart: a title, the metric names it gathers (shell patterns), and how its axis runs."""

    title: str
    names: tuple[str, ...]
    note: str = ""
    share: bool = False  # values are shares, 0..1, shown in percent
    low: float | None = None


CUT_OFF, NO_SIGNAL = "completions/clipped_ratio", "frac_reward_zero_std"
FIRST = (
    Spec("Loss", ("loss", "nll"), "divided by the step's global token count"),
    Spec("Reward", ("reward", "reward_std"), "mean over all rollouts, and the spread inside groups"),
    Spec("Reward parts", ("rewards/*/mean",), "each reward before its weight"),
    Spec(
        "Rollout accuracy",
        ("accuracy",),
        "exact, over all rollouts, gated ones included; falls where a curriculum grows harder",
        share=True,
    ),
    Spec(
        "Thinking and hedging",
        ("think_rate", "hedge_rate"),
        "thoughts that are not empty; half answers",
        share=True,
    ),
    Spec("Completion length", ("completions/m*_length",), "tokens", low=0.0),
    Spec("Lost rollouts", (CUT_OFF, NO_SIGNAL), "cut off; groups without signal", share=True),
    Spec("Entropy", ("entropy",), "nats per token; near 0, nothing is explored any more", low=0.0),
    Spec("KL to the reference", ("kl",), "k3 estimate per token", low=0.0),
    Spec(
        "Clipped ratios", ("clip_ratio/*",), "share of tokens at the trust region's edge", share=True, low=0.0
    ),
)
CURRICULUM = "curriculum/*"
MOVES = (
    Spec(
        "Window of difficulty",
        ("curriculum/window_*", "curriculum/difficulty"),
        "open ranks; mean difficulty",
    ),
    Spec("Groups so far", ("curriculum/admitted", "curriculum/dropped*", "curriculum/unverified"), low=0.0),
    Spec("Admitted share", ("curriculum/admit_rate",), "groups that passed the gate", share=True),
)
PRETASK = "pretask/*"
LATER = (
    Spec("Gradient norm", ("grad_norm",), "before clipping", low=0.0),
    Spec("Learning rate", ("learning_rate",), low=0.0),
    Spec("Prompt difficulty", ("difficulty",), "mean over the rollouts"),
    Spec("Token weights", ("token_weight/*",)),
    Spec("Tools", ("tools/*",)),
    Spec("Seconds per step", ("time/*",), low=0.0),
    Spec("Tokens per step", ("tokens/*",), low=0.0),
)
SILENT = (
    "step",
    "stage",
    "rows",
    "groups",
    "memory/pss",
    "skipped_steps",
    "epoch",
    "rewards/*/std",
    "rewards/bad_values",
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart with its legend: (colour class, name, last value in words) for each line."""

    title: str
    note: str
    svg: Markup
    legend: list[tuple[str, str, str]]


@dataclass(frozen=True)
class StageCurves:
    """A stage's charts: the ones to look at first, how the curriculum moved, and the rest."""

    name: str
    kind: str
    steps: int
    first: list[Chart]
    curriculum: list[Chart]
    later: list[Chart]


def stage_curves(run: Run) -> list[StageCurves]:
    """The charts of every stage that wrote metrics, in the order the stages ran."""
    names = list(dict.fromkeys(str(line.get("stage")) for line in run.metrics))
    out = []
    for name in names:
        lines = run.steps(name)
        keys = [k for k in dict.fromkeys(k for line in lines for k in line) if not _silent(k)]
        used: set[str] = set()
        first = _charts([*_pretask(keys), *FIRST], lines, keys, used)
        own = [Spec(_title(k), (k,)) for k in keys if fnmatch.fnmatch(k, CURRICULUM)]
        curriculum = _charts([*MOVES, *own], lines, keys, used)
        later = _charts(LATER, lines, keys, used)
        rest = [Spec(key, (key,)) for key in keys if key not in used]
        later += _charts(rest, lines, keys, used)
        kind = str(run.stage(name).get("type", ""))
        out.append(StageCurves(name, kind, len(lines), first, curriculum, later))
    return out


def _pretask(keys: Sequence[str]) -> list[Spec]:
    """Two charts for each medium of a perception pretask: right where something is, and right everywhere."""
    media = list(dict.fromkeys(k.split("/")[1] for k in keys if fnmatch.fnmatch(k, PRETASK)))
    out = []
    for medium in media:
        for ending, note in (
            ("_things", "right on cells and moments that hold something"),
            ("", "right on all cells and moments, empty ones too"),
        ):
            out.append(
                Spec(f"Perception: {medium}", (f"pretask/{medium}/*/accuracy{ending}",), note, share=True)
            )
    return out


def values(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of every line that has the number; null (a value that was not finite) is left out."""
    found = ((line["step"], line.get(key)) for line in lines)
    return [(float(s), float(v)) for s, v in found if isinstance(v, int | float)]


def _charts(
    specs: Sequence[Spec], lines: Sequence[Mapping[str, Any]], keys: list[str], used: set[str]
) -> list[Chart]:
    out = []
    for spec in specs:
        matched = [k for pattern in spec.names for k in keys if k not in used and fnmatch.fnmatch(k, pattern)]
        used.update(matched)
        series = [(k, values(lines, k)) for k in matched]
        series = [(k, points) for k, points in series if points and (k != "kl" or any(v for _, v in points))]
        if [k for k, _ in series] == ["loss", "nll"] and series[0][1] == series[1][1]:
            series = series[:1]  # SFT's loss is nothing else: one line would hide the other
        if series:
            out.append(_chart(spec, series))
    return out


def _chart(spec: Spec, series: list[tuple[str, list[tuple[float, float]]]]) -> Chart:
    say = percent if spec.share else number
    short = _short_names([k for k, _ in series])
    drawn = [Series(short[i], points, f"c{i % 6}") for i, (_, points) in enumerate(series)]
    bounds = (0.0, 1.0) if spec.share and spec.low is None else (spec.low, None)
    svg = line_chart(drawn, label=f"{spec.title} over steps", bounds=bounds, percent=spec.share)
    legend = [(s.colour, s.name, say(s.points[-1][1])) for s in drawn]
    return Chart(spec.title, spec.note, svg, legend)


def _short_names(keys: list[str]) -> list[str]:
    """`rewards/exact/mean` is `exact` beside other rewards; the last word where nothing is left."""
    short = []
    for key in keys:
        parts = key.split("/")
        inner = parts[0] in ("rewards", "pretask") and len(parts) > 2
        short.append(parts[-2] if inner else parts[-1])
    return [s.replace("_", " ") for s in (short if len(set(short)) == len(short) else keys)]


def _title(key: str) -> str:
    return key.split("/", 1)[-1].replace("_", " ").replace("/", " ").capitalize()


def _silent(key: str) -> bool:
    return any(fnmatch.fnmatch(key, pattern) for pattern in SILENT)
