"""The dense truth of a row's media: the column `targets`, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mmreason.types import Sample

IGNORE = -100


class DenseTarget(BaseModel):
    """A word for every bin of time and cell of space of one medium; word 0 says that nothing is there.

    `labels` index `words`, flat: time first, then rows, then columns; -100 is not asked. The bins of time divide
    `seconds` evenly, from the medium's start; a still has one bin and 0 seconds.

    Example: `DenseTarget(medium=0, name="image/colour", words=("empty", "red"), grid=(1, 1, 2), labels=(0, 1))`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    medium: NonNegativeInt
    name: str
    words: tuple[str, ...] = Field(min_length=2)
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]
    labels: tuple[int, ...]
    seconds: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> DenseTarget:
        if len(self.labels) != math.prod(self.grid):
            raise ValueError(
                f"{len(self.labels)} labels for a grid of {self.grid}; give {math.prod(self.grid)}"
            )
        if self.grid[0] > 1 and not self.seconds:
            raise ValueError(f"{self.grid[0]} bins of time in 0 seconds; give the seconds that they divide")
        wrong = sorted({i for i in self.labels if i != IGNORE and not 0 <= i < len(self.words)})
        if wrong:
            raise ValueError(
                f"labels {wrong} for {len(self.words)} words; allowed are 0..{len(self.words) - 1} and -100"
            )
        return self


def dense_targets(sample: Sample) -> tuple[DenseTarget, ...]:
    """The targets of a row; none when it has no such column.

    Raises:
        ValueError: naming the row, what is wrong with which target, and what is allowed.
    """
    try:
        given = sample.columns.get("targets") or ()
        targets = tuple(DenseTarget.model_validate(target) for target in given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "targets"
        raise ValueError(f"row {sample.id}: targets: {where}: {first['msg']}") from error
    films = [i for i, ref in enumerate(sample.media) if ref.kind == "video"]
    if len(films) > 1 and {t.medium for t in targets} & set(films):
        raise ValueError(
            f"row {sample.id}: targets of a video in a row that shows {len(films)} of them; give each its own row"
        )
    beyond = sorted({t.medium for t in targets if t.medium >= len(sample.media)})
    if beyond:
        raise ValueError(f"row {sample.id}: targets speak of media {beyond}; the row has {len(sample.media)}")
    return targets


def with_targets(samples: Iterable[Sample]) -> Sequence[Sample]:
    """The rows that carry dense truth."""
    return [sample for sample in samples if sample.columns.get("targets")]
