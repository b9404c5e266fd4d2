"""The first screen: did it learn. Judged on the compositional questions where there are such, all others apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmreason.evaluate import EvalRow, blind_scores, measures
from mmreason.report.load import Run
from mmreason.report.stages import ARROW, stage_colours, stage_label
from mmreason.report.words import interval, percent, plural, points

Level = Literal["good", "unsure", "bad"]
LEADS = (
    "compositional"  # the group of questions that the headline is about; others are what they are built of
)
Delta = Mapping[str, float]


@dataclass(frozen=True)
class Bar:
    """One evaluated stage on a ladder: accuracy and its own 95% interval."""

    label: str
    colour: str
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Ladder:
    """The stages on one group of questions (`name` empty: on all of them)."""

    name: str
    n: int
    chance: float | None
    bars: list[Bar]


@dataclass(frozen=True)
class Part:
    """One group of a modality's questions after the last stage, against chance. `level` bad: not above it."""

    group: str  # empty where there is one group
    n: int
    accuracy: float
    chance: float
    level: Level


@dataclass(frozen=True)
class Sense:
    """One modality at the end of the main line, group by group."""

    name: str
    parts: list[Part]


@dataclass(frozen=True)
class Headline:
    """`level` colours the words; `sentences` hold what the gains are, one each. The first ladder is what they say."""

    level: Level
    title: str
    under: str
    sentences: list[tuple[Level, str]]
    ladders: list[Ladder]
    senses: list[Sense]  # empty where there is one modality


def groups_of(run: Run) -> list[str]:
    """Groups of questions after the last stage, the one of the headline first; [""] where there is one."""
    found = list(run.evaluation[run.line[-1]].get("by_group") or ()) if run.line else []
    return sorted(found, key=lambda name: (name != LEADS, name)) if len(found) > 1 else [""]


def headline(run: Run) -> Headline:
    """What the evaluation says about the main line, in one title and a few sentences."""
    known = [n for n in run.evaluation if run.evaluation[n]["overall"].get("accuracy") is not None]
    if not run.line or not known:
        return Headline("unsure", *_not_evaluated(run), [], [], [])
    groups = groups_of(run)
    group = groups[0] if groups[0] == LEADS else ""
    blocks = {name: _block(run, name, group) for name in run.evaluation}
    last = blocks[run.line[-1]]
    under = (
        f"Exact answers on {_questions(last['n'], group, 'held-out ')}, {ARROW.join(run.line)}. "
        f"Guessing without looking gives {percent(last.get('chance'))}."
    )
    level, title = _title(run, blocks, group)
    shown = [group, *[name for name in groups if name != group]]
    ladders = [_ladder(run, known, name) for name in shown]
    return Headline(level, title, under, _sentences(run, blocks, groups, group), ladders, senses(run))


def senses(run: Run) -> list[Sense]:
    """Each modality after the last stage of the main line; empty where there is only one, or nothing evaluated."""
    blocks = run.evaluation[run.line[-1]]["by_modality"] if run.line else {}
    if len(blocks) < 2:
        return []
    groups, rows = groups_of(run), run.rows[run.line[-1]]
    blind = blind_scores(rows)
    out = []
    for name, block in blocks.items():
        own = {g: _of(rows, name, g, blind) if g else block for g in groups}
        parts = [_part(g, said) for g, said in own.items() if said["n"] and said["chance"] is not None]
        out.append(Sense(name, [part for part in parts if part is not None]))
    return out


def _of(rows: Sequence[EvalRow], modality: str, group: str, blind: Any) -> dict[str, Any]:
    return measures([r for r in rows if (r.modality, r.group) == (modality, group)], blind)


def _part(group: str, said: Mapping[str, Any]) -> Part | None:
    accuracy, chance = said["accuracy"], said["chance"]
    if accuracy is None:
        return None
    low, high = wilson(accuracy, said["n"])
    level: Level = "good" if low > chance else "bad" if high < chance or accuracy <= chance else "unsure"
    return Part(group, said["n"], accuracy, chance, level)


def _not_evaluated(run: Run) -> tuple[str, str]:
    if not (run.recipe.get("eval") or {}).get("data"):
        return (
            "Not evaluated",
            "The recipe names no held-out rows; add eval.data to learn whether it learned.",
        )
    return "Not evaluated yet", "No stage has been evaluated so far; the curves below show the training."


def _block(run: Run, stage: str, group: str) -> Mapping[str, Any]:
    """A stage's measures on one group of questions ("": on all); empty where it met none of them."""
    said = run.evaluation[stage]
    return (said.get("by_group") or {}).get(group, {}) if group else said["overall"]


def _delta(run: Run, before: str | None, after: str, group: str) -> Delta | None:
    """What `after` gains on one group ("": on all); None where nothing is there to compare."""
    said = run.difference(before, after) if before else {}
    return said.get("by_group", {}).get(group) if group else said.get("overall")


def _questions(n: int, group: str, kind: str = "") -> str:
    return plural(n, f"{kind}{group} question" if group else f"{kind}question")


def _title(run: Run, blocks: Mapping[str, Mapping[str, Any]], group: str) -> tuple[Level, str]:
    line = run.line
    last, said = line[-1], blocks[line[-1]]
    path = ARROW.join(percent(blocks[n].get("accuracy"), 0) for n in line)
    if len(line) == 1:
        return "unsure", f"{stage_label(run, last).capitalize()}: {path}"
    delta, step = _delta(run, line[0], last, group), _delta(run, line[-2], last, group)
    if delta and delta["low"] > 0:
        chance = said.get("chance") or 0.0
        if wilson(said["accuracy"], said["n"])[0] <= chance:
            where = "up to chance" if said["accuracy"] >= chance else "but is below chance"
            return "unsure", f"It improved, {where}: {path}"
        if step and step["low"] <= 0:
            but = "lost in" if step["high"] < 0 else "gained nothing certain from"
            return "unsure", f"It learned, but {but} {last}: {path}"
        return "good", f"It learned: {path}"
    if delta and delta["high"] < 0:
        return "bad", f"It got worse: {path}"
    if step and step["high"] < 0:
        return "bad", f"It got worse in {last}: {path}"
    return "unsure", f"No measurable change: {path}"


def _sentences(
    run: Run, blocks: Mapping[str, Mapping[str, Any]], groups: Sequence[str], group: str
) -> list[tuple[Level, str]]:
    out: list[tuple[Level, str]] = []
    for name in [*run.line[1:], *run.rivals]:
        parent = run.parent(name)
        delta = _delta(run, parent, name, group)
        if delta:
            verb = "gains" if delta["low"] > 0 else "loses" if delta["high"] < 0 else "has no certain effect:"
            said = f"{stage_label(run, name)} {verb} {interval(delta)} points against {parent}"
            out.append((level_of(delta), said))
    last = run.line[-1]
    out += [_race(run, last, rival, group) for rival in run.rivals]
    chance, accuracy = blocks[last].get("chance"), blocks[last].get("accuracy")
    if chance is not None and accuracy is not None:
        ahead = accuracy - chance
        where = f"{points(abs(ahead))[1:]} points {'above' if ahead >= 0 else 'below'} chance"
        out.append(("good" if ahead > 0.05 else "bad", f"{last} ends {where}"))
    return [line for line in out if line[1]] + _others(run, groups, group)


def _race(run: Run, last: str, rival: str, group: str) -> tuple[Level, str]:
    """The main line's last stage against a side branch."""
    earlier, later = sorted((rival, last), key=list(run.evaluation).index)
    delta = _delta(run, earlier, later, group)
    if not delta:
        return "unsure", ""
    if later != last:
        delta = {"mean": -delta["mean"], "low": -delta["high"], "high": -delta["low"]}
    word = "ahead of" if delta["low"] > 0 else "behind" if delta["high"] < 0 else "level with"
    called = "rival" if rival == "rival" else f"rival {rival}"
    return level_of(delta), f"{last} ends {word} its {called}: {interval(delta)} points"


def _others(run: Run, groups: Sequence[str], lead: str) -> list[tuple[Level, str]]:
    """A sentence on each group that the headline is not about, and one on all questions together."""
    line = run.line
    last, parent = line[-1], run.parent(line[-1])
    out: list[tuple[Level, str]] = []
    for group in [*groups, ""] if len(groups) > 1 else ():
        if group == lead:
            continue
        said, delta = _block(run, last, group), _delta(run, parent, last, group)
        path = ARROW.join(percent(_block(run, stage, group).get("accuracy"), 0) for stage in line)
        gain = f"; {last} {interval(delta)}" if delta else ""
        of = f"{_questions(said['n'], '')}, chance {percent(said['chance'])}"
        name = group or "all together"
        out.append((level_of(delta) if delta else "unsure", f"{name}: {path} of {of}{gain}"))
    return out


def level_of(delta: Delta) -> Level:
    """Good where the whole interval is above 0, bad where it is below."""
    return "good" if delta["low"] > 0 else "bad" if delta["high"] < 0 else "unsure"


def _ladder(run: Run, stages: Sequence[str], group: str) -> Ladder:
    colours, bars = stage_colours(run), []
    for name in stages:
        said = _block(run, name, group)
        if said.get("accuracy") is not None:
            low, high = wilson(said["accuracy"], said["n"])
            bars.append(Bar(stage_label(run, name), colours[name], said["accuracy"], low, high))
    last = _block(run, run.line[-1], group)
    return Ladder(group, last["n"], last.get("chance"), bars)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n questions (1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
