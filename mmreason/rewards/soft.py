"""Partial credit for questions with several answers, and the detector of saying less than one knows.

Subset credit is TW-GRPO's soft reward (arXiv 2505.24718). It never punishes leaving answers out beyond the
share that is missing, so a policy may learn to name one sure option: `hedge` measures that, `blend`
counters it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmreason.rewards.answer import answer_set, parse_answer, solution_text
from mmreason.rewards.verify import verify
from mmreason.types import Group, Sample

Answers = frozenset[str]


def subset(given: Answers, truth: Answers) -> float:
    """|given| / |truth| when every given answer is right, else 0. Of {A, C}: {A} is 0.5, {A, B} is 0."""
    return len(given) / len(truth) if given <= truth else 0.0


def jaccard(given: Answers, truth: Answers) -> float:
    """|given and truth| / |given or truth|."""
    return len(given & truth) / len(given | truth)


def f1(given: Answers, truth: Answers) -> float:
    """Harmonic mean of precision and recall."""
    return 2 * len(given & truth) / (len(given) + len(truth))


def exact(given: Answers, truth: Answers) -> float:
    """1 for set equality, else 0."""
    return float(given == truth)


SOFT: dict[str, Callable[[Answers, Answers], float]] = {
    "subset": subset,
    "jaccard": jaccard,
    "f1": f1,
    "exact": exact,
}


def _sets(sample: Sample, text: str) -> tuple[Answers, Answers] | None:
    """(given, truth) of a question that admits several answers; None for every other question."""
    truth = solution_text(sample)
    if sample.problem_type != "multi_choice" or truth is None:
        return None
    wanted = answer_set(truth, sample.options, truth)
    assert wanted, f"row {sample.id} has an empty solution, which reading the row refuses"
    return answer_set(truth, sample.options, parse_answer(text) or ""), wanted


def soft_score(sample: Sample, text: str, kind: str = "subset") -> float | None:
    """Partial credit of a completion; where only one answer is possible it is the exact verdict.

    `kind` is one of `SOFT`. An empty answer gives 0. None without a solution.
    """
    sets = _sets(sample, text)
    return verify(sample, text) if sets is None else SOFT[kind](*sets)


def hedge(sample: Sample, text: str) -> bool | None:
    """Whether a question with several right answers was met with only some of them and nothing wrong.

    None where the truth is a single answer: hedging is impossible there.
    """
    sets = _sets(sample, text)
    if sets is None or len(sets[1]) < 2:
        return None
    given, truth = sets
    return bool(given) and given < truth


def soft_reward(kind: str) -> Callable[[Group, Mapping[str, Any]], list[float | None]]:
    """The reward that gives `soft_score` of this kind."""

    def reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
        return [soft_score(group.sample, t.text, kind) for t in group.trajectories]

    reward.__doc__ = SOFT[kind].__doc__
    return reward


def blend_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """`soft_weight` x partial credit (`soft`: subset, jaccard or f1) + `exact_weight` x the exact verdict.

    Defaults 0.5 and 0.5 with subset: {A} of {A, C} gives 0.25, {A, C} gives 1.
    """
    kind = args.get("soft", "subset")
    if kind not in SOFT:
        raise ValueError(f"reward_args.blend.soft is {kind!r}; it may be one of {sorted(SOFT)}")
    soft_weight, exact_weight = args.get("soft_weight", 0.5), args.get("exact_weight", 0.5)
    out: list[float | None] = []
    for trajectory in group.trajectories:
        soft, right = soft_score(group.sample, trajectory.text, kind), verify(group.sample, trajectory.text)
        out.append(None if soft is None or right is None else soft_weight * soft + exact_weight * right)
    return out
