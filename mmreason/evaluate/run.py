"""Evaluation itself: answer every sample, judge every answer. It does not know which engine writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmreason.evaluate.rows import EvalRow, judge
from mmreason.types import Sample

# Samples -> for each, the completion's text (without the end-of-turn token) and its length in tokens; None
# where the sample's media could not be read (the caller has put it in quarantine by name).
Generate = Callable[[Sequence[Sample]], Sequence[tuple[str, int] | None]]


def evaluate(
    samples: Sequence[Sample],
    generate: Generate,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[EvalRow]:
    """Judge one greedy answer for every sample, in order, `batch_size` questions at a time.

    `progress(done)` is called after each batch. A sample that `generate` could not answer is left out, so
    that every stage is measured on the same readable rows. `measures.summarise` turns the rows into
    numbers.

    Raises:
        ValueError: nothing to evaluate, or `generate` returned another number of answers than questions.
    """
    if not samples:
        raise ValueError("evaluation got no rows; check eval.data, its path, and quarantine.jsonl")
    rows: list[EvalRow] = []
    done = 0
    for start in range(0, len(samples), batch_size):
        chosen = samples[start : start + batch_size]
        answers = generate(chosen)
        if len(answers) != len(chosen):
            raise ValueError(
                f"generate returned {len(answers)} answers for {len(chosen)} questions; one each is needed"
            )
        rows += [judge(s, *answer) for s, answer in zip(chosen, answers, strict=True) if answer is not None]
        done += len(chosen)
        if progress:
            progress(done)
    return rows


def limit_evenly(samples: dict[str, Sequence[Sample]], limit: int | None) -> list[Sample]:
    """At most `limit` samples, taken evenly over the sources and evenly spaced inside each.

    Example: limits of 6 over sources of 10 and 2 rows give 4 and 2.
    """
    total = sum(len(rows) for rows in samples.values())
    if limit is None or limit >= total:
        return [sample for rows in samples.values() for sample in rows]
    shares = dict.fromkeys(samples, 0)
    left = limit
    while left:
        open_sources = [name for name in samples if shares[name] < len(samples[name])]
        for name in open_sources[:left]:
            shares[name] += 1
        left -= min(left, len(open_sources))
    chosen: list[Sample] = []
    for name, rows in samples.items():
        chosen += [rows[i * len(rows) // shares[name]] for i in range(shares[name])]
    return chosen
