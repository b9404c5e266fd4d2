"""Who computes which rows: as many for every rank, and as equal as may be by the tokens that they should have.

A group whose completions are too many for one rank, or do not come out even, is cut into pieces of one size.

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
        ranks = self.backend.world_size
        rooms = [-(-len(units) // ranks)] * ranks
        return [units[i] for i in dealt([self._expected(unit) for unit in units], rooms)[self.backend.rank]]

    def pieces(self, prompts: Sequence[Sample], rooms: Sequence[int], each: int) -> list[tuple[int, int]]:
        """This rank's (prompt, piece) of groups that all ranks drew, each of `each` pieces; as in `cut`."""
        return cut([self._expected((sample,)) for sample in prompts], rooms, each)[self.backend.rank]

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


def dealt(costs: Sequence[float], rooms: Sequence[int]) -> list[list[int]]:
    """Places of the items that each rank gets, at most `rooms` of them: the dearest first to the rank that has least
    so far.

    Example: costs 9, 1, 1, 9 with room for two on each of two ranks are `[[0, 1], [2, 3]]`; equal costs go round in
    turns.
    """
    shares: list[list[int]] = [[] for _ in rooms]
    sums = [0.0] * len(rooms)
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        room = [rank for rank, most in enumerate(rooms) if len(shares[rank]) < most]
        rank = min(room, key=lambda rank: (sums[rank], len(shares[rank]), rank))
        shares[rank].append(i)
        sums[rank] += costs[i]
    return [sorted(share) for share in shares]


def cut(costs: Sequence[float], rooms: Sequence[int], each: int) -> list[list[tuple[int, int]]]:
    """(group, piece) that each rank gets, of groups of `each` pieces; `rooms` are the pieces that ranks should have.

    Whole groups come first, as many as find room, by `dealt`. The cheapest are left over, as every rank that has a part
    of a group pays for its prompt: they go piece after piece to the first rank with room.

    Example: costs 1, 9, 9 with room for three on each of two ranks, in groups of two pieces:
    `[[(0, 0), (1, 0), (1, 1)], [(0, 1), (2, 0), (2, 1)]]`.
    """
    whole = [max(room, 0) // each for room in rooms]
    dearest = sorted(sorted(range(len(costs)), key=lambda i: (-costs[i], i))[: sum(whole)])
    shares = [
        [(dearest[place], piece) for place in share for piece in range(each)]
        for share in dealt([costs[i] for i in dearest], whole)
    ]
    left = [room - len(share) for room, share in zip(rooms, shares, strict=True)]
    for i in sorted(set(range(len(costs))) - set(dearest)):
        for piece in range(each):
            first = next((rank for rank, room in enumerate(left) if room > 0), None)
            rank = left.index(max(left)) if first is None else first
            shares[rank].append((i, piece))
            left[rank] -= 1
    return [sorted(share) for share in shares]


def _sort(unit: Unit) -> str:
    """What rows of about as many tokens have in common."""
    media = sorted(ref.kind for ref in unit[0].media)
    return "/".join([unit[0].source, "+".join(media), str(len(unit))])
