"""Rewards for completions that are already written: the core of `mmreason score`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmreason.evaluate.rows import bare_group, mean
from mmreason.plugins import load_function
from mmreason.rewards import score_group
from mmreason.types import PROBLEM_TYPES, Message, Part, Sample

_NAMED = ("id", "source", "question", "prompt", "problem", "completion", "solution", "answer", "problem_type")


def score(
    rows: Iterable[Mapping[str, Any]], reward: str, args: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Score stored completions with one reward: a name of `rewards.REWARDS`, or a user's `file.py:function`.

    A row holds `completion` (a text, or a list of texts scored as one group), `solution` and
    `problem_type`, and may hold `id`, `question`, `options`, `difficulty`; every other column reaches the
    reward.
    Returns {reward, n, mean, accuracy, problems, rows: [{id, reward, accuracy}]}; a list of texts gives
    lists; `problems` names what a user's function got wrong.

    Raises:
        ValueError: a row lacks a column or has one of another kind; the message names the row.
    """
    users = {reward: load_function(reward)} if ".py:" in reward else {}
    arguments = {reward: dict(args)} if args else {}
    out: list[dict[str, Any]] = []
    problems: list[str] = []
    for line, row in enumerate(rows, start=1):
        sample, completions = _sample(row, line)
        group, said = score_group(bare_group(sample, completions), [reward], None, arguments, users)
        problems += said
        rewards = [t.rewards[reward] for t in group.trajectories]
        accuracy = [t.accuracy for t in group.trajectories]
        single = isinstance(row["completion"], str)
        judged = (rewards[0], accuracy[0]) if single else (rewards, accuracy)
        out.append({"id": sample.id, "reward": judged[0], "accuracy": judged[1]})
    flat_rewards = [v for r in out for v in _listed(r["reward"])]
    return {
        "reward": reward,
        "n": len(flat_rewards),
        "mean": mean(flat_rewards),
        "accuracy": mean(v for r in out for v in _listed(r["accuracy"])),
        "problems": problems,
        "rows": out,
    }


def _sample(row: Mapping[str, Any], line: int) -> tuple[Sample, list[str]]:
    for name in ("completion", "problem_type"):
        if name not in row:
            raise ValueError(
                f"row {line}: no {name!r}; a scored row holds completion, solution, problem_type"
            )
    if row["problem_type"] not in PROBLEM_TYPES:
        raise ValueError(
            f"row {line}: problem_type {row['problem_type']!r}; it is one of {', '.join(PROBLEM_TYPES)}"
        )
    solution = row.get("solution", row.get("answer"))
    if solution is None:
        raise ValueError(f"row {line}: no 'solution' to score against")
    if isinstance(solution, list):
        solution = ",".join(str(s) for s in solution)
    given = row["completion"]
    completions = [given] if isinstance(given, str) else given
    if (
        not isinstance(completions, list)
        or not completions
        or not all(isinstance(c, str) for c in completions)
    ):
        raise ValueError(
            f"row {line}: completion is {type(given).__name__}; give a text, or a list of texts (a group)"
        )
    question = next(
        (str(row[k]) for k in ("question", "problem", "prompt") if isinstance(row.get(k), str)), ""
    )
    sample = Sample(
        id=str(row.get("id", f"row:{line}")),
        source=str(row.get("source", "rows")),
        messages=(Message("user", (Part("text", text=question),)),),
        solution=str(solution),
        problem_type=row["problem_type"],
        options=tuple(str(o) for o in row.get("options") or ()),
        difficulty=row.get("difficulty"),
        columns={k: v for k, v in row.items() if k not in (*_NAMED, "options", "difficulty")},
    )
    return sample, completions


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
