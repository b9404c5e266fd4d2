"""What is measured on held-out rows, and what guessing would score. The same words mean the same everywhere.

accuracy: exact (for several answers, set equality), over the rows that have a solution. soft: the subset
score. chance: see `blind_scores`. think_rate: the think body is not empty. mean_length: tokens. format: the
strict grammar. hedge_rate: of the questions with several right answers, those answered with a strict,
non-empty part of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.evaluate.rows import EvalRow, judge, mean
from mmreason.rewards import answer_set, normalise
from mmreason.rewards.verify import CHOICE_TYPES
from mmreason.types import Sample


def evaluate_rows(
    samples: Sequence[Sample], completions: Sequence[str], lengths: Sequence[int]
) -> dict[str, Any]:
    """Judge one completion a sample and summarise; see `summarise` for the keys."""
    return summarise([judge(*row) for row in zip(samples, completions, lengths, strict=True)])


def summarise(
    rows: Sequence[EvalRow], blind: Mapping[tuple[str, str], float] | None = None
) -> dict[str, Any]:
    """The block that `eval.json` holds for a stage.

    `blind` is `blind_scores` of all rows that were evaluated together, where these are only some of them.

    Keys: overall, by_group, by_modality, by_problem_type, by_kind, by_source (name -> measures; see `parts`),
    by_difficulty (a list of measures with lo and hi).
    """
    blind = blind_scores(rows) if blind is None else blind
    return {
        "overall": measures(rows, blind),
        **{
            f"by_{key}": {name: measures(part, blind) for name, part in parts(rows, key).items()}
            for key in ("group", "modality", "problem_type", "kind", "source")
        },
        "by_difficulty": [{"lo": lo, "hi": hi, **measures(part, blind)} for lo, hi, part in thirds(rows)],
    }


def parts(rows: Sequence[EvalRow], key: str) -> dict[str, list[EvalRow]]:
    """The rows by one of their properties, names in order; rows of no group are in none.

    A source is a source of the recipe's `data`; DATA/SOURCE where its rows name several of their own.
    """
    origins: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        origins[row.source].add(row.origin)

    def name(row: EvalRow) -> str:
        mixed = key == "source" and row.origin and len(origins[row.source]) > 1
        return f"{row.source}/{row.origin}" if mixed else str(getattr(row, key))

    out: dict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        out[name(row)].append(row)
    return {name: out[name] for name in sorted(out) if name}


def measures(rows: Sequence[EvalRow], blind: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """{n, accuracy, soft, chance, think_rate, mean_length, format, hedge_rate}; None where unknown.

    `blind` is `blind_scores` of all rows that were evaluated together.
    """
    return {
        "n": len(rows),
        "accuracy": mean(r.correct for r in rows),
        "soft": mean(r.soft for r in rows),
        "chance": mean(blind.get((r.source, r.id)) for r in rows),
        "think_rate": mean(r.think for r in rows),
        "mean_length": mean(r.length for r in rows),
        "format": mean(r.format for r in rows),
        "hedge_rate": mean(r.hedge for r in rows),
    }


def thirds(rows: Sequence[EvalRow]) -> list[tuple[float, float, list[EvalRow]]]:
    """(lo, hi, rows) for the easiest, the middle and the hardest third of the rows that have a difficulty.

    The cuts are quantiles, moved so that rows of equal difficulty stay together; an empty third is left out.
    """
    ordered = sorted((r for r in rows if r.difficulty is not None), key=lambda r: r.difficulty or 0.0)
    values = [r.difficulty or 0.0 for r in ordered]
    if not values:
        return []
    cuts = [values[len(values) // 3], values[2 * len(values) // 3]]
    parts: list[list[EvalRow]] = [[], [], []]
    for row, value in zip(ordered, values, strict=True):
        parts[sum(value >= cut for cut in cuts)].append(row)
    return [(p[0].difficulty or 0.0, p[-1].difficulty or 0.0, p) for p in parts if p]


def chance_rate(rows: Sequence[EvalRow]) -> float | None:
    """Expected accuracy of answering these rows blindly; see `blind_scores`. None when no row has a solution.

    Example: ten "how many" rows of which four have the answer 2, and ten yes/no rows, six of them "yes":
    (10 * 0.4 + 10 * 0.6) / 20 = 0.5.
    """
    return mean(blind_scores(rows).values())


def blind_scores(rows: Sequence[EvalRow]) -> dict[tuple[str, str], float]:
    """(source, id) -> what the best blind strategy for the row's form of question expects to score on that row.

    A form is (modality, problem_type, kind): what the question's own words reveal. For each, the strategy is the
    better of a uniform guess (1/options; for several answers 1/(2^options - 1), a non-empty subset) and the best
    constant answer. It is chosen once on all rows: chosen again inside a slice of a few rows, the best constant
    would follow their noise, and every slice would seem easier to guess than the whole.
    """
    forms: dict[tuple[str, str, str], list[EvalRow]] = defaultdict(list)
    for row in rows:
        if row.solution is not None:
            forms[row.modality, row.problem_type, row.kind].append(row)
    scores: dict[tuple[str, str], float] = {}
    for form in forms.values():
        guess = [_guess(row) for row in form]
        answer, count = Counter(_canonical(row) for row in form).most_common(1)[0]
        constant = [float(_canonical(row) == answer) for row in form]
        best = constant if count > sum(guess) else guess
        scores |= {(row.source, row.id): score for row, score in zip(form, best, strict=True)}
    return scores


def _guess(row: EvalRow) -> float:
    count = len(row.options)
    return 0.0 if not count else 1 / (2**count - 1) if row.problem_type == "multi_choice" else 1 / count


def _canonical(row: EvalRow) -> tuple[str, ...]:
    truth = row.solution or ""
    if row.problem_type in CHOICE_TYPES:
        return tuple(sorted(answer_set(truth, row.options, truth)))
    return (normalise(truth),)
