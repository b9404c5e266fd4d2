"""Answers to look at: held-out questions through the stages."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmreason.evaluate import EvalRow
from mmreason.report.album import Album, View
from mmreason.report.load import Run
from mmreason.report.stages import stage_colours, stage_label
from mmreason.report.words import plural
from mmreason.rewards import parse_answer

PER_OUTCOME = 8  # cards for each of learned, lost, right, wrong
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
    options: list[str]  # those that the question itself does not name


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
            views = album.views(row.media, row.evidence)
            out.append(Card(outcome, row, views, replies, unnamed(row.options, row.question)))
    return out


def unnamed(options: Sequence[str], question: str) -> list[str]:
    """All options, or none where the question's text already lists them."""
    return [] if all(option in question for option in options) else list(options)


def spread(rows: Sequence[EvalRow], most: int) -> list[EvalRow]:
    """At most `most` rows: in turn from each modality, there from each form, each form evenly over its difficulties."""
    senses: dict[str, list[EvalRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: (r.difficulty or 0.0, r.id)):
        senses[row.modality].append(row)
    queues = [_over_forms(part, -(-most // len(senses))) for part in senses.values()]
    return [queue[i] for i in range(most) for queue in queues if i < len(queue)][:most]


def _over_forms(rows: Sequence[EvalRow], first: int) -> list[EvalRow]:
    """Rows of one modality, the best choice of `first` in front."""
    forms: dict[tuple[str, str], list[EvalRow]] = defaultdict(list)
    for row in rows:
        forms[row.problem_type, row.kind].append(row)
    share = -(-first // len(forms))  # of each form, evenly over its difficulties
    chosen = [_evenly(part, share) for part in forms.values()]
    queue = _evenly([part[i] for i in range(share) for part in chosen if i < len(part)], first)
    known = {(row.source, row.id) for row in queue}
    return [*queue, *[row for row in rows if (row.source, row.id) not in known]]


def _evenly(part: Sequence[EvalRow], most: int) -> Sequence[EvalRow]:
    if len(part) <= most:
        return part
    return [part[(2 * i + 1) * len(part) // (2 * most)] for i in range(most)]


def _outcome(before: EvalRow | None, now: EvalRow) -> str:
    right = bool(now.correct)
    if before is None or before.correct is None or bool(before.correct) == right:
        return "right" if right else "wrong"
    return "learned" if right else "lost"


def _reply(run: Run, stage: str, row: EvalRow) -> Reply:
    facts = [plural(row.length, "token")]
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


def pieces(completion: str) -> list[tuple[bool, str]]:
    """The completion cut at the grammar's tags: (is a tag, text). Nothing is lost or changed."""
    return [(bool(_TAG.fullmatch(piece)), piece) for piece in _TAG.split(completion) if piece]
