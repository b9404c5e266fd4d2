"""Several rendered questions on the same media in one row, the media once, the questions side by side; and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from mmreason.types import Rendered


def side_by_side(rows: Sequence[Rendered]) -> Rendered:
    """One row of the rows' common beginning, up to the last medium, and what each goes on with, as segments 1, 2 ...

    Example: [m m a b] and [m m c] (m a medium's placeholder) become [m m a b c] with segments [0 0 1 1 2].

    Raises:
        ValueError: the rows do not begin alike.
    """
    first = rows[0]
    if len(rows) == 1:
        return first
    places = first.token_types.nonzero()
    cut = int(places.max()) + 1 if len(places) else 0
    for row in rows[1:]:
        if not torch.equal(row.ids[:cut], first.ids[:cut]) or bool(row.token_types[cut:].any()):
            raise ValueError(f"rows {first.sample_id} and {row.sample_id} do not show the same media first")
    # the token before a question's first one in the row is another question's: it must not have to predict it
    assert not any(bool(row.sampled[cut : cut + 1].any()) for row in rows), first.sample_id

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(first, name)[:cut], *(getattr(row, name)[cut:] for row in rows)])

    lengths = torch.tensor([cut, *(len(row) - cut for row in rows)])
    return replace(
        first,
        sample_id="+".join(row.sample_id for row in rows),
        segments=torch.arange(len(rows) + 1).repeat_interleave(lengths),
        ids=joined("ids"),
        roles=joined("roles"),
        sampled=joined("sampled"),
        token_types=joined("token_types"),
    )


def question_places(segments: torch.Tensor) -> list[torch.Tensor]:
    """Where in a row of segments [T] the tokens of each question stand, the shared beginning first: int64 [L] each.

    Example: segments [0 0 1 1 2] give [0 1 2 3] and [0 1 4]; [0 0] is one question of two tokens.
    """
    ids = range(1, max(1, int(segments.max())) + 1)
    return [((segments == 0) | (segments == number)).nonzero().squeeze(1) for number in ids]


def apart(row: Rendered) -> list[Rendered]:
    """The questions of a row as rows of their own, all with the row's media; the inverse of `side_by_side`."""
    if row.segments is None:
        return [row]
    return [
        replace(
            row,
            segments=None,
            **{name: getattr(row, name)[at] for name in ("ids", "roles", "sampled", "token_types")},
        )
        for at in question_places(row.segments)
    ]
