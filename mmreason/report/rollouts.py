"""Completions that GRPO sampled, with every reward part, and what each token weighed in the loss."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmreason.report.album import Album, View
from mmreason.report.gallery import pieces, unnamed
from mmreason.report.load import Run
from mmreason.rewards import parse_answer

ROLLOUT_GROUPS = 8


@dataclass(frozen=True)
class Token:
    """One token of a completion. `heat` is 0 for a weight of 1, and 1 for the heaviest token of the page's stage."""

    text: str
    weight: float
    heat: float


@dataclass(frozen=True)
class Rollout:
    """One sampled completion with what each reward gave it; `tokens` only where their weights were recorded."""

    pieces: list[tuple[bool, str]]
    tokens: list[Token]
    answer: str
    accuracy: float | None
    rewards: Mapping[str, float | None]
    reward: float | None
    advantage: float | None
    length: int
    cut: bool
    times: int = 1  # how often the group holds it


@dataclass(frozen=True)
class RolloutGroup:
    """The logged completions of one prompt at one step. `heaviest` is the top of its scale of token weights."""

    stage: str
    step: int
    question: str
    solution: str
    options: list[str]
    facts: str
    views: list[View]
    rewards: list[str]
    rollouts: list[Rollout]
    heaviest: float


def rollout_groups(run: Run, album: Album) -> list[RolloutGroup]:
    """Groups from the start to the end of each GRPO stage, every modality among them.

    Those with right and wrong answers are taken first, and those whose token weights are known where any are.
    """
    out: list[RolloutGroup] = []
    for stage in [s["name"] for s in run.stages if s.get("type") == "grpo"]:
        groups = [group for lines in run.rollouts(stage) for group in _groups(lines)]
        weighed = [group for group in groups if any(line.get("token_weights") for line in group)]
        chosen = _spread(weighed or groups)
        heaviest = max(
            (w for g in chosen for line in g for w in line.get("token_weights") or ()), default=1.0
        )
        out += [_rollout_group(stage, group, heaviest, album) for group in chosen]
    return out


def _groups(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The completions of one step by their prompt."""
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line.get("group"), line.get("id")].append(line)
    return list(groups.values())


def _spread(groups: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """ROLLOUT_GROUPS of them, near evenly spaced places: the modality seen least so far, then mixed, then nearest."""
    left, chosen = list(range(len(groups))), []
    seen: Counter[str] = Counter()
    wanted = min(ROLLOUT_GROUPS, len(groups))
    for slot in range(wanted):
        place = slot * (len(groups) - 1) / max(1, wanted - 1)

        def rank(i: int, place: float = place) -> tuple[float, ...]:
            mixed = len({line.get("accuracy") for line in groups[i]}) > 1
            return seen[_modality(groups[i])], -mixed, abs(i - place)

        best = min(left, key=rank)
        left.remove(best)
        chosen.append(best)
        seen[_modality(groups[best])] += 1
    return [groups[i] for i in sorted(chosen)]


def _modality(group: Sequence[Mapping[str, Any]]) -> str:
    return str(group[0].get("modality", ""))


def _rollout_group(
    stage: str, lines: Sequence[Mapping[str, Any]], heaviest: float, album: Album
) -> RolloutGroup:
    first = lines[0]
    facts = [str(first[key]).replace("_", " ") for key in ("modality", "problem_type") if first.get(key)]
    if first.get("difficulty") is not None:
        facts.append(f"difficulty {first['difficulty']:.2f}")
    ordered = sorted(lines, key=lambda x: -(x.get("reward") or 0.0))
    return RolloutGroup(
        stage=stage,
        step=int(first.get("step", 0)),
        question=str(first.get("prompt", "")),
        solution=str(first.get("solution", "")),
        options=unnamed([str(o) for o in first.get("options") or ()], str(first.get("prompt", ""))),
        facts=", ".join(facts),
        views=album.views(first.get("media") or (), first.get("evidence") or ()),
        rewards=list(dict.fromkeys(name for line in lines for name in line.get("rewards", {}))),
        rollouts=_distinct([_rollout(line, heaviest) for line in ordered]),
        heaviest=heaviest,
    )


def _distinct(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Each rollout once, with the number of times it came."""
    out: list[Rollout] = []
    for rollout in rollouts:
        if rollout not in out:
            out.append(rollout)
    return [replace(one, times=list(rollouts).count(one)) for one in out]


def _rollout(line: Mapping[str, Any], heaviest: float) -> Rollout:
    weights = line.get("token_weights") or []
    scale = max(heaviest - 1.0, 1e-6)
    return Rollout(
        pieces=pieces(str(line["completion"])),
        tokens=[
            Token(text, weight, min(max((weight - 1.0) / scale, 0.0), 1.0))
            for text, weight in zip(line.get("token_texts") or [], weights, strict=True)
        ],
        answer=(parse_answer(str(line["completion"])) or "")[:120],
        accuracy=line.get("accuracy"),
        rewards=line.get("rewards", {}),
        reward=line.get("reward"),
        advantage=line.get("advantage"),
        length=int(line.get("tokens", 0)),
        cut=line.get("finish") == "length",
    )
