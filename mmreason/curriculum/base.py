"""What training asks of a curriculum: a sampler draws prompts, a gate judges the groups made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmreason.types import Group, Sample


class Sampler(Protocol):
    """Draws prompts; owns the state that decides the next draw."""

    def next(self, n: int, step: int | None = None) -> list[Sample]:
        """The next n prompts. `step` is the training step; without it each call is a step."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """What became of the prompts drawn."""
        ...

    def metrics(self) -> dict[str, float]:
        """curriculum/* values of the last draw."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; loading it makes the next draw the same."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; ValueError when it belongs to another pool."""
        ...


class Gate(Protocol):
    """Admits groups to training, on accuracy and never on shaped reward."""

    def admit(self, group: Group) -> bool:
        """Whether to train on this group."""
        ...

    def observe(self, groups: Sequence[Group]) -> None:
        """Every group that was rolled out, on all ranks; they are counted here, so that all ranks count the same."""
        ...

    def metrics(self) -> dict[str, float]:
        """curriculum/* counts since the start of the stage."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...
