"""How the video world speaks: the list of what happened, and the parts that questions and thoughts share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np

from mmreason.data.worlds.asking import shuffled
from mmreason.data.worlds.image.scenes import COLOURS, SHAPES
from mmreason.data.worlds.video.physics import Clip, Event

Rng = np.random.Generator
NONE = "none"
ALL_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)


class Timed(Protocol):
    """Whatever has a moment: an event here, a sound in the av world."""

    @property
    def moment(self) -> int:
        """When it happened."""


def told(event: Event) -> str:
    """One entry of the list: "3 red star moved left", or "blue circle stayed", which has no moment."""
    return event.phrase if event.verb == "stayed" else f"{event.moment} {event.phrase}"


def listed(entries: Sequence[Event]) -> str:
    """Entries in order: "3 red star moved left, 5 green square flashed, blue circle stayed"."""
    return ", ".join(told(e) for e in entries) or NONE


def moments(things: Iterable[Timed]) -> str:
    """When they happened, or "none"; "stayed" for what has no moment: "2 5 5"."""
    still = "stayed"
    return (
        " ".join(still if isinstance(x, Event) and x.verb == still else str(x.moment) for x in things) or NONE
    )


def found(term: str, things: Iterable[Timed]) -> str:
    """What a thought looked for, then when: "red star moved 3", "flashed 2 5", "blue circle flashed none".

    The term comes first: what stands before the moment is then what names it, and a small LLM finds it at once.
    With the moment first it must be known before anything is written, and is mostly guessed.
    """
    return f"{term} {moments(things)}"


def phrases(events: Sequence[Event]) -> str:
    """The events without their moments, or "none": "red star moved left, green square flashed"."""
    return ", ".join(e.phrase for e in events) or NONE


def names(events: Iterable[Event]) -> str:
    """Who did it, or "none": "red star, green square"."""
    return ", ".join(e.name for e in events) or NONE


def up_to(n: int) -> str:
    """Counting up, so that the result is a copy of the last number said: 3 -> "1 2 3"."""
    return " ".join(map(str, range(1, n + 1))) or "0"


def other_names(clip: Clip, taken: Collection[str], rng: Rng) -> list[str]:
    """Names of the clip that are not taken, then names that are not in it, each part in random order."""
    there = [name for name in shuffled(clip.names, rng) if name not in taken]
    return there + [name for name in shuffled(ALL_NAMES, rng) if name not in taken and name not in clip.names]


def named_options(right: Sequence[str], clip: Clip, n: int, rng: Rng, but: str = "") -> tuple[str, ...]:
    """n names in random order, the right ones among them and `but` not."""
    wrong = other_names(clip, (*right, but), rng)
    return shuffled([*right, *wrong[: n - len(right)]], rng)
