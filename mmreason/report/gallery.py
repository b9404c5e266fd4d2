"""Answers to look at: held-out questions through the stages, and rollouts with every reward part."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmreason.evaluate import EvalRow
from mmreason.report.load import Run
from mmreason.report.pictures import Album, View
from mmreason.report.verdict import stage_colours, stage_label
from mmreason.rewards import parse_answer

PER_OUTCOME = 6  # cards for each of learned, lost, right, wrong
ROLLOUT_GROUPS = 6
_TAG = re.compile(r"(</?(?:think|answer|planning|caption|reasoning|summary)>)")
OUTCOMES = {
    "learned": "wrong before, right now",
    "lost": "right before, wrong now",
    "wrong": "wrong before and now",
    "right": "right before and now",
}


@dataclass(frozen=True)
class Reply:
    """What one stage answered. `pieces` are (is a tag, text) in order."""

    stage: str
    colour: str
    correct: bool | None
    answer: str
    pieces: list[tuple[bool, str]]
    facts: str  # "soft 0.5, hedges, 31 tokens"


@dataclass(frozen=True)
class Card:
    """One held-out question beside its picture, with every stage's reply (the last stage's first)."""

    outcome: str
    row: EvalRow
    views: list[View]
    replies: list[Reply]


@dataclass(frozen=True)
class Rollout:
    """One sampled completion with what each reward gave it."""

    pieces: list[tuple[bool, str]]
    answer: str
    accuracy: float | None
    rewards: Mapping[str, float | None]
    reward: float | None
    advantage: float | None
    tokens: int
    cut: bool


@dataclass(frozen=True)
class RolloutGroup:
    """The logged completions of one prompt at one step."""

    stage: str
    step: int
    question: str
    solution: str
    options: list[str]
    facts: str
    views: list[View]
    rewards: list[str]
    rollouts: list[Rollout]


def cards(run: Run, album: Album) -> list[Card]:
    """Held-out questions chosen evenly over outcome, problem type and difficulty; the choice needs no luck."""
    if not run.line:
        return []
    last = run.line[-1]
    parent = run.parent(last)
    answers = {stage: {(r.source, r.id): r for r in rows} for stage, rows in run.rows.items()}
    by_outcome: dict[str, list[EvalRow]] = defaultdict(list)
    for key, row in answers[last].items():
        before = answers[parent].get(key) if parent else None
        if row.correct is not None:
            by_outcome[_outcome(before, row)].append(row)
    order = [last, *[s for s in reversed(list(answers)) if s != last]]
    out = []
    for outcome in OUTCOMES:
        for row in spread(by_outcome[outcome], PER_OUTCOME):
            replies = [
                _reply(run, s, answers[s][row.source, row.id])
                for s in order
                if (row.source, row.id) in answers[s]
            ]
            out.append(Card(outcome, row, album.views(row.media, row.evidence), replies))
    return out


def spread(rows: Sequence[EvalRow], most: int) -> list[EvalRow]:
    """At most `most` rows, in turn from each form of question, each form evenly over its difficulties."""
    forms: dict[str, list[EvalRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: (r.difficulty or 0.0, r.id)):
        forms[f"{row.modality} {row.problem_type} {row.kind}"].append(row)
    share = -(-most // max(1, len(forms)))  # of each form, evenly over its difficulties
    chosen = [_evenly(part, share) for part in forms.values()]
    return [part[i] for i in range(share) for part in chosen if i < len(part)][:most]


def _evenly(part: Sequence[EvalRow], most: int) -> Sequence[EvalRow]:
    if len(part) <= most:
        return part
    return [part[(2 * i + 1) * len(part) // (2 * most)] for i in range(most)]


def rollout_groups(run: Run, album: Album) -> list[RolloutGroup]:
    """Groups from the start, the middle and the end of each GRPO stage; those with right and wrong answers first."""
    out: list[RolloutGroup] = []
    for stage in [s["name"] for s in run.stages if s.get("type") == "grpo"]:
        files = [lines for lines in run.rollouts(stage) if lines]
        wanted = min(ROLLOUT_GROUPS, len(files))
        chosen = [files[round(i * (len(files) - 1) / max(1, wanted - 1))] for i in range(wanted)]
        for lines in chosen:
            groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for line in lines:
                groups[line.get("group"), line.get("id")].append(line)
            best = max(groups.values(), key=lambda g: len({line.get("accuracy") for line in g}))
            out.append(_rollout_group(stage, best, album))
    return out


def _outcome(before: EvalRow | None, now: EvalRow) -> str:
    right = bool(now.correct)
    if before is None or before.correct is None or bool(before.correct) == right:
        return "right" if right else "wrong"
    return "learned" if right else "lost"


def _reply(run: Run, stage: str, row: EvalRow) -> Reply:
    facts = [f"{row.length} tokens"]
    if row.problem_type == "multi_choice" and row.soft is not None:
        facts.append(f"soft {row.soft:.2g}")
    if row.hedge:
        facts.append("hedges")
    if not row.format:
        facts.append("not in the format")
    if not row.think:
        facts.append("no thought")
    right = None if row.correct is None else bool(row.correct)
    answer = parse_answer(row.completion) or ""
    label, colour = stage_label(run, stage), stage_colours(run)[stage]
    return Reply(label, colour, right, answer[:120], pieces(row.completion), ", ".join(facts))


def _rollout_group(stage: str, lines: Sequence[Mapping[str, Any]], album: Album) -> RolloutGroup:
    first = lines[0]
    names = list(dict.fromkeys(name for line in lines for name in line.get("rewards", {})))
    facts = [str(first.get("problem_type", "")).replace("_", " ")]
    if first.get("difficulty") is not None:
        facts.append(f"difficulty {first['difficulty']:.2f}")
    return RolloutGroup(
        stage=stage,
        step=int(first.get("step", 0)),
        question=str(first.get("prompt", "")),
        solution=str(first.get("solution", "")),
        options=[str(o) for o in first.get("options") or ()],
        facts=", ".join(facts),
        views=album.views(first.get("media") or (), first.get("evidence") or ()),
        rewards=names,
        rollouts=[_rollout(line) for line in sorted(lines, key=lambda x: -(x.get("reward") or 0.0))],
    )


def _rollout(line: Mapping[str, Any]) -> Rollout:
    return Rollout(
        pieces=pieces(str(line["completion"])),
        answer=(parse_answer(str(line["completion"])) or "")[:120],
        accuracy=line.get("accuracy"),
        rewards=line.get("rewards", {}),
        reward=line.get("reward"),
        advantage=line.get("advantage"),
        tokens=int(line.get("tokens", 0)),
        cut=line.get("finish") == "length",
    )


def pieces(completion: str) -> list[tuple[bool, str]]:
    """The completion cut at the grammar's tags: (is a tag, text). Nothing is lost or changed."""
    return [(bool(_TAG.fullmatch(piece)), piece) for piece in _TAG.split(completion) if piece]
