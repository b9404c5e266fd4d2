"""Paired bootstrap over questions: how sure a difference between two models on the same rows is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHUNK = 4_000_000  # resampled entries held at once


def crossed_bootstrap(
    differences: Sequence[Sequence[float]], seed: int = 0, n: int = 10_000
) -> dict[str, float]:
    """Mean of a table of differences, a line a training seed and a column a question, with its 95% interval.

    Seeds and questions are both drawn with replacement (Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111), since
    another seed would differ as another question would. Of one seed only questions are drawn: what another seed would
    give is then not in the interval. Returns {mean, low, high}.

    Example: `crossed_bootstrap([[1, 1], [-1, -1]])` is mean 0 between -1 and 1: the two seeds contradict each other.

    Raises:
        ValueError: an empty table, or lines of different length.
    """
    table = (
        np.asarray([list(line) for line in differences], dtype=np.float64)
        if differences
        else np.empty((0, 0))
    )
    if not table.size:
        raise ValueError(f"a bootstrap needs at least one seed and one question; got {table.shape}")
    generator = np.random.default_rng(seed)
    seeds, questions = table.shape
    columns, counts = np.unique(
        table, axis=1, return_counts=True
    )  # questions that differ alike are drawn as one
    means = np.empty(n)
    per_chunk = max(1, _CHUNK // len(counts))
    for start in range(0, n, per_chunk):
        count = min(per_chunk, n - start)
        lines = generator.multinomial(seeds, np.full(seeds, 1 / seeds), count) @ columns / seeds
        weights = generator.multinomial(questions, counts / questions, count) / questions
        means[start : start + count] = (lines * weights).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(table.mean()), "low": float(low), "high": float(high)}


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], seed: int = 0, n: int = 10_000
) -> dict[str, float]:
    """Mean of `b - a` with its 95% percentile interval; entry i of both speaks of the same question.

    Returns {mean, low, high}. Efron & Tibshirani 1993, chapter 13; questions are drawn with replacement, both
    models together, so what makes a question hard for both cancels. Equal differences are drawn as one: how often each
    value comes is all that a mean depends on.

    Example: `paired_bootstrap([0, 0, 1], [1, 1, 1])["mean"]` is 2/3.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired bootstrap needs the same rows twice; got {len(a)} and {len(b)} of them")
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    values, counts = np.unique(difference, return_counts=True)
    generator = np.random.default_rng(seed)
    size = len(difference)
    means = np.empty(n)
    per_chunk = max(1, _CHUNK // len(values))
    for start in range(0, n, per_chunk):
        stop = min(start + per_chunk, n)
        means[start:stop] = generator.multinomial(size, counts / size, stop - start) @ values / size
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}
