"""Which rows come next, and how training rows become padded micro-batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mmreason.types import MicroBatch, TrainingSample

Row = TypeVar("Row")  # a sample, or several that share a row


class _Stream(Generic[Row]):
    """Endless rows of a pool: every epoch is a fresh shuffle by (seed, name, epoch), and no row is ever lost."""

    def __init__(self, name: str, rows: Sequence[Row], seed: int) -> None:
        if not rows:
            raise ValueError(f"data {name}: no rows to train on")
        self.name, self.rows, self.seed = name, rows, seed
        self.epoch, self.position = 0, 0
        self._order = self._shuffle()

    def _shuffle(self) -> np.ndarray:
        digest = hashlib.blake2b(f"{self.seed}:{self.name}:{self.epoch}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).permutation(
            len(self.rows)
        )

    def next(self) -> Row:
        if self.position == len(self.rows):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._shuffle()
        self.position += 1
        return self.rows[self._order[self.position - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "rows": len(self.rows)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if state["rows"] != len(self.rows):
            raise ValueError(
                f"data {self.name}: the checkpoint was made with {state['rows']} rows, now there are {len(self.rows)}; "
                "put the data back as they were, or start a new output_dir"
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffle()


class Loader(Generic[Row]):
    """Rows of `data` (one pool) with fixed shares of replayed sources mixed in, reshuffled every epoch.

    Args:
        sources: every source's rows.
        data: the sources that make the pool.
        replay: source -> share of the rows drawn, kept exactly in the long run and spread evenly.

    Example: with `replay={"old": 0.25}` every fourth row comes from `old`.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Row]],
        data: Sequence[str],
        replay: Mapping[str, float],
        seed: int,
    ) -> None:
        missing = sorted({*data, *replay} - set(sources))
        if missing:
            raise ValueError(f"no data sources {missing}; there are {sorted(sources)}")
        if sum(replay.values()) >= 1.0:
            raise ValueError(
                f"replay shares {dict(replay)} sum to {sum(replay.values())}; allowed is less than 1"
            )
        pool = [row for name in data for row in sources[name]]
        self._main = _Stream("+".join(data), pool, seed)
        self._replay = {
            name: _Stream(f"replay/{name}", sources[name], seed) for name, s in replay.items() if s > 0
        }
        self._shares = {"": 1.0 - sum(replay.values())} | {name: replay[name] for name in self._replay}
        self._credit = dict.fromkeys(self._shares, 0.0)  # "" is the pool

    def next(self, n: int) -> list[Row]:
        """The next `n` rows."""
        return [self._one() for _ in range(n)]

    def _one(self) -> Row:
        """Smooth weighted round robin: after n rows each stream has given its share of n, less or more than one row."""
        for name, share in self._shares.items():
            self._credit[name] += share
        chosen = max(self._credit, key=lambda name: round(self._credit[name], 9))
        self._credit[chosen] -= 1.0
        return self._replay[chosen].next() if chosen else self._main.next()

    def peek(self, n: int) -> list[Row]:
        """What `next(n)` will give; nothing is drawn."""
        state = self.state_dict()
        rows = self.next(n)
        self.load_state_dict(state)
        return rows

    @property
    def epoch_rows(self) -> float:
        """Rows to draw for one pass over the pool, the replayed ones between them counted."""
        return len(self._main.rows) / self._shares[""]

    @property
    def epoch(self) -> float:
        """Passes over the pool so far; replayed rows do not count."""
        return self._main.epoch + self._main.position / len(self._main.rows)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        streams = {name: stream.state_dict() for name, stream in self._replay.items()}
        return {"main": self._main.state_dict(), "replay": streams, "credit": dict(self._credit)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`, over the same data.

        Raises:
            ValueError: the data or the replayed sources are not those of the checkpoint.
        """
        if sorted(state["replay"]) != sorted(self._replay):
            raise ValueError(
                f"the checkpoint replays {sorted(state['replay'])}, this run {sorted(self._replay)}; make them the same"
            )
        self._main.load_state_dict(state["main"])
        for name, stream in self._replay.items():
            stream.load_state_dict(state["replay"][name])
        self._credit = dict(state["credit"])


def pack(rows: Sequence[TrainingSample], max_tokens: int) -> list[list[int]]:
    """Indices of rows, micro-batch by micro-batch, each within `max_tokens` padded tokens (media tokens included).

    Rows of one group (`group >= 0`) are never split. A group or row above the budget gets its own micro-batch: the
    budget bounds memory as well as it can, and drops nothing.

    Example: lengths 4, 6, 3 without groups and a budget of 12 give [[1, 0], [2]]: 2 rows padded to 6, then one.
    """
    units: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(rows):
        units.setdefault(("group", row.group) if row.group >= 0 else ("row", i), []).append(i)
    longest = {key: max(len(rows[i]) for i in unit) for key, unit in units.items()}
    batches: list[list[int]] = []
    width = 0
    for key in sorted(units, key=lambda k: (-longest[k], units[k][0])):  # like lengths together: less padding
        unit = units[key]
        if not batches or width * (len(batches[-1]) + len(unit)) > max_tokens:
            batches.append([])
            width = longest[key]
        batches[-1] += unit
    return batches


def collate(rows: Sequence[TrainingSample], pad_id: int) -> MicroBatch:
    """Rows padded on the right to one length; media concatenated in row order, and only those that rows have.

    Raises:
        ValueError: a row with an advantage lacks the old log-probabilities that others have.
    """
    width = max(len(row) for row in rows)

    def padded(
        streams: Sequence[torch.Tensor | None], value: int | float, dtype: torch.dtype
    ) -> torch.Tensor:
        out = torch.full((len(rows), width), value, dtype=dtype)
        for i, stream in enumerate(streams):
            if stream is not None:
                out[i, : stream.numel()] = stream
        return out

    def optional(streams: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        return None if all(s is None for s in streams) else padded(streams, 0.0, torch.float32)

    off_policy = any(row.old_logprobs is not None for row in rows)
    for row in rows:
        if off_policy and row.old_logprobs is None and bool((row.rl != 0).any()):
            raise ValueError(
                f"row {row.rendered.sample_id}: no old log-probabilities; others of its batch have them"
            )
    names = sorted({name for row in rows for name in row.rendered.media})
    return MicroBatch(
        ids=padded([row.rendered.ids for row in rows], pad_id, torch.long),
        attention_mask=padded([torch.ones(len(row), dtype=torch.long) for row in rows], 0, torch.long),
        token_types=padded([row.rendered.token_types for row in rows], 0, torch.long),
        media={
            n: torch.cat([row.rendered.media[n] for row in rows if n in row.rendered.media]) for n in names
        },
        aggregation=padded([row.aggregation for row in rows], 0.0, torch.float32),
        ce=padded([row.ce for row in rows], 0.0, torch.float32),
        rl=padded([row.rl for row in rows], 0.0, torch.float32),
        kl=padded([row.kl for row in rows], 0.0, torch.float32),
        old_logprobs=optional([row.old_logprobs for row in rows]),
        ref_logprobs=optional([row.ref_logprobs for row in rows]),
        groups=torch.tensor([row.group for row in rows], dtype=torch.long),
        count=sum(row.count for row in rows),
        segments=_segments(rows, width),
        sampling_logprobs=optional([row.sampling_logprobs for row in rows]),
        beside=torch.tensor([row.beside for row in rows]) if any(row.beside for row in rows) else None,
    )


def _segments(rows: Sequence[TrainingSample], width: int) -> torch.Tensor | None:
    """Segments [B, L] where some row has several, -1 where padded."""
    if all(row.rendered.segments is None for row in rows):
        return None
    out = torch.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        segments = row.rendered.segments
        out[i, : len(row)] = 0 if segments is None else segments
    return out
