"""Which question to ask of a scene, so that the words of a question never give its answer away.

Scenes offer answers unevenly (a count of 0 is common, of 5 rare). A pilot run finds the answers that scenes
offer often enough; then a question is asked only while its answer is not ahead of the others of its kind and
wording. What is left for a reader of the text alone is the best constant answer. The state depends on the
scenes before and on nothing else, so a longer world begins with the shorter one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FLOOR = 0.03  # answers that fewer pilot scenes offer are never asked for: waiting would starve their kind
SLACK = 2.0  # how far an answer may run ahead of the rarest one


@dataclass(frozen=True)
class Candidate:
    """A question that a scene allows: its wording group, its answer class, and what `ask` needs to write it.

    `weight` is the share that the answer class deserves (the number of distinct answers in it).
    Example: `Candidate("count", "colour", 3, args=(("red", None),))`.
    """

    kind: str
    group: str
    answer: Hashable
    args: tuple[Any, ...]
    weight: float = 1.0

    @property
    def key(self) -> tuple[str, str, Hashable]:
        """What is counted."""
        return self.kind, self.group, self.answer


Offers = Callable[[str], Sequence[Candidate]]  # kind -> what this scene offers of that kind


def pilot_keys(scenes: Iterable[Sequence[Candidate]]) -> dict[tuple[str, str, Hashable], float]:
    """Answer classes (with weights) that at least `FLOOR` of the pilot scenes offer."""
    seen: Counter[tuple[str, str, Hashable]] = Counter()
    weights: dict[tuple[str, str, Hashable], float] = {}
    total = 0
    for candidates in scenes:
        total += 1
        seen.update({c.key for c in candidates})
        weights.update({c.key: c.weight for c in candidates})
    return {key: weights[key] for key, n in seen.items() if n >= FLOOR * total}


class Balance:
    """Counts what was asked and chooses what to ask next.

    Example: with answers 0..3 allowed and 0 asked three times, a scene that offers 0 and 2 is asked for 2,
    and one that offers only 0 is not asked.
    """

    def __init__(self, keys: Mapping[tuple[str, str, Hashable], float]) -> None:
        self._weights = dict(keys)
        self._asked: Counter[tuple[str, str, Hashable]] = Counter()
        self._kinds: Counter[str] = Counter()
        self._of_kind: dict[str, list[tuple[str, str, Hashable]]] = defaultdict(list)
        for key in keys:
            self._of_kind[key[0]].append(key)

    def _level(self, key: tuple[str, str, Hashable]) -> float:
        return self._asked[key] / self._weights[key]

    def _admissible(self, candidates: Sequence[Candidate], limit: float) -> list[tuple[float, Candidate]]:
        levels = [(self._level(c.key), c) for c in candidates if c.key in self._weights]
        return [(level, c) for level, c in levels if level <= limit]

    def choose(
        self, kinds: Sequence[str], offers: Offers, n: int, rng: np.random.Generator
    ) -> list[Candidate]:
        """Up to n distinct questions for one scene: kinds seldom asked first, then answers seldom asked."""
        chosen: list[Candidate] = []
        offered = {}
        for _ in range(n):
            here = Counter(c.kind for c in chosen)
            noise = dict(zip(kinds, rng.random(len(kinds)), strict=True))
            for kind in sorted(kinds, key=lambda k: (here[k], self._kinds[k], noise[k])):
                if kind not in offered:
                    offered[kind] = offers(kind)
                limit = min((self._level(k) for k in self._of_kind[kind]), default=0.0) + SLACK
                fresh = [c for c in offered[kind] if c not in chosen]
                able = self._admissible(fresh, limit)
                if able:
                    low = min(level for level, _ in able)
                    pick = [c for level, c in able if level == low]
                    chosen.append(pick[int(rng.integers(len(pick)))])
                    self._asked[chosen[-1].key] += 1
                    self._kinds[kind] += 1
                    break
            else:
                break
        return chosen
