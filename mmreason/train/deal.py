"""Who computes which rows: as many for every rank, and as equal as may be by the tokens that they should have.

How many tokens a row has is known once its media are read, which only the rank that computes it does. So rows are dealt
out by how many tokens rows of their source with as many media had so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmreason.train.distributed import Backend
from mmreason.types import Sample

Unit = tuple[Sample, ...]  # samples that share a row


class Dealer:
    """Deals rows out over ranks. State: what it has seen, the same on all ranks.

    Example: after films of 2,000 tokens and texts of 50, of two films and two texts each of two ranks gets one and one.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._rows: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def mine(self, units: Sequence[Unit]) -> list[Unit]:
        """This rank's part of rows that all ranks drew, in their order."""
        if self.backend.world_size == 1:
            return list(units)
        share = dealt([self._expected(unit) for unit in units], self.backend.world_size)[self.backend.rank]
        return [units[i] for i in share]

    def observe(self, read: Iterable[tuple[Unit, int]]) -> None:
        """Note how many tokens rows have that this rank has read; all ranks call it together."""
        if self.backend.world_size == 1:
            return
        rows, tokens = Counter[str](), Counter[str]()
        for unit, count in read:
            rows[_sort(unit)] += 1
            tokens[_sort(unit)] += count
        for some, more in self.backend.gather((rows, tokens)):
            self._rows += some
            self._tokens += more

    def _expected(self, unit: Unit) -> float:
        """The mean of its sort; of one that is new, of all rows."""
        sort = _sort(unit)
        if sort in self._rows:
            return self._tokens[sort] / self._rows[sort]
        return self._tokens.total() / max(self._rows.total(), 1)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"rows": dict(self._rows), "tokens": dict(self._tokens)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """The inverse of `state_dict`; None: of a checkpoint that is older than this."""
        if state is not None:
            self._rows, self._tokens = Counter(state["rows"]), Counter(state["tokens"])


def dealt(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Places of the items that each rank gets: as many for each, the dearest first to the rank that has least so far.

    Example: costs 9, 1, 1, 9 for two ranks are `[[0, 1], [2, 3]]`; equal costs go round in turns.
    """
    most = -(-len(costs) // ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0.0] * ranks
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        room = [rank for rank in range(ranks) if len(shares[rank]) < most]
        rank = min(room, key=lambda rank: (sums[rank], len(shares[rank]), rank))
        shares[rank].append(i)
        sums[rank] += costs[i]
    return [sorted(share) for share in shares]


def _sort(unit: Unit) -> str:
    """What rows of about as many tokens have in common."""
    media = sorted(ref.kind for ref in unit[0].media)
    return "/".join([unit[0].source, "+".join(media), str(len(unit))])
