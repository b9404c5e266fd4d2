"""Readers of the question without the medium: three text-only predictors and the chance they are held against.

They learn on training rows and answer test rows: the most frequent answer of the exact question, a linear bag of
words and word pairs over answers, and a linear score per option from its words, its place and the question. Chance
is the larger of a uniform guess and the best constant answer, as everywhere here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmreason.data.worlds import make_world

Row = dict[str, Any]


def rows_by_kind(world: str, folder: Path, *, train: int, test: int) -> dict[str, dict[str, list[Row]]]:
    """split -> kind -> rows of a world made for the purpose, without rationales."""
    rows: dict[str, dict[str, list[Row]]] = {}
    for split, count in (("train", train), ("test", test)):
        path = make_world(world, folder / split, count=count, seed=11, split=split, rationale=False)
        rows[split] = defaultdict(list)
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[split][row["kind"]].append(row)
    return rows


def text_of(row: Row) -> str:
    return row["messages"][0]["content"][-1]["text"]


def stem_of(row: Row) -> str:
    return text_of(row).split(" options:")[0]


def _answer(row: Row) -> str:
    """The solution without regard to the order of several answers."""
    return ", ".join(sorted(row["solution"].split(", ")))


def chance_of(rows: Sequence[Row]) -> float:
    constant = Counter(map(_answer, rows)).most_common(1)[0][1] / len(rows)
    options = len(rows[0]["options"])
    guess = {"single_choice": 1 / max(options, 1), "multi_choice": 1 / max(2**options - 1, 1)}
    return max(constant, guess.get(rows[0]["problem_type"], 0.0))


def _design(features: Sequence[Iterable[str]], vocabulary: dict[str, int]) -> np.ndarray:
    """Feature sets -> 0/1 matrix with a constant column [rows, 1 + vocabulary]."""
    matrix = np.zeros((len(features), len(vocabulary) + 1), dtype=np.float32)
    matrix[:, -1] = 1
    for i, names in enumerate(features):
        matrix[i, [vocabulary[n] for n in names if n in vocabulary]] = 1
    return matrix


def _ridge(train: Sequence[set[str]], targets: np.ndarray, test: Sequence[set[str]]) -> np.ndarray:
    """Scores [test rows, targets] of a ridge regression on 0/1 features."""
    vocabulary = {name: i for i, name in enumerate(sorted(set().union(*train)))}
    x = _design(train, vocabulary)
    weights = np.linalg.solve(x.T @ x + 20 * np.eye(x.shape[1], dtype=np.float32), x.T @ targets)
    return _design(test, vocabulary) @ weights


def _by_question(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        seen[stem_of(row)][_answer(row)] += 1
        seen[""][_answer(row)] += 1
    return [seen.get(stem_of(row), seen[""]).most_common(1)[0][0] for row in test]


def _words(row: Row) -> set[str]:
    words = text_of(row).replace(",", "").replace("?", "").replace(".", "").split()
    return {*words, *(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))}


def _by_words(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    answers = sorted({_answer(row) for row in train})
    targets = np.eye(len(answers), dtype=np.float32)[[answers.index(_answer(row)) for row in train]]
    scores = _ridge([_words(row) for row in train], targets, [_words(row) for row in test])
    return [answers[i] for i in scores.argmax(axis=1)]


def _option_features(row: Row) -> list[set[str]]:
    """What a text-only reader can hold for or against each option, other options of near name included."""
    stem = set(stem_of(row).replace(",", "").rstrip(".?").split())
    features = []
    for i, option in enumerate(row["options"]):
        words = option.split()
        shared = [sum(w in other.split() for other in row["options"]) for w in words]
        names = {
            f"place {i}",
            f"is {option}",
            f"shared {sorted(shared)}",
            f"stem {stem_of(row).find(option)}",
        }
        names |= {f"has {w}" for w in words} | {f"{option} asked {w}" for w in stem}
        features.append(names | {f"{option} beside {other}" for other in row["options"]})
    return features


def _by_option(train: Sequence[Row], test: Sequence[Row]) -> list[str]:
    features = [f for row in train for f in _option_features(row)]
    targets = [[float(o in row["solution"].split(", "))] for row in train for o in row["options"]]
    flat = _ridge(
        features, np.asarray(targets, np.float32), [f for row in test for f in _option_features(row)]
    )
    scores = iter(flat[:, 0])
    said = []
    for row in test:
        mine = {option: next(scores) for option in row["options"]}
        best = max(mine, key=lambda o: mine[o])
        several = [o for o in mine if mine[o] > 0.5] if row["problem_type"] == "multi_choice" else []
        said.append(", ".join(sorted(several or [best])))
    return said


def accuracy_of(train: Sequence[Row], test: Sequence[Row]) -> float:
    """Exact accuracy of the best of the three predictors."""
    predictors = [_by_question, _by_words, *([_by_option] if test[0]["options"] else [])]
    right = [sum(a == _answer(row) for a, row in zip(p(train, test), test, strict=True)) for p in predictors]
    return max(right) / len(test)
