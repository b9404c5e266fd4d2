"""Scenes of the spoken world: one to three recordings of digits, each a sound of its own, and when each is heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmreason.data.worlds.rows import Target
from mmreason.data.worlds.spoken.recordings import DIGITS, Take
from mmreason.data.worlds.spoken.sound import SECONDS

MOST_TAKES = 3
SILENCE = "silence"
BINS = 20  # of the dense truth
SURE = 0.5  # share of a bin that a recording must fill to be its word

Rng = np.random.Generator
Span = tuple[float, float]  # seconds


@dataclass(frozen=True)
class Scene:
    """Recordings in the order they are heard. Example: `Scene((Take(7, "george", 12), Take(4, "lucas", 8)))`."""

    takes: tuple[Take, ...]

    @property
    def digits(self) -> tuple[int, ...]:
        """What is said."""
        return tuple(take.digit for take in self.takes)


def draw_scene(takes: Sequence[Take], sizes: Sequence[int], rng: Rng) -> Scene:
    """Any recordings, any speakers: every digit is as likely at every place."""
    size = sizes[int(rng.integers(len(sizes)))]
    return Scene(tuple(takes[i] for i in rng.integers(len(takes), size=size)))


def evidence_of(places: Sequence[int], scene: Scene, spans: Sequence[Span]) -> tuple[dict[str, Any], ...]:
    """Spans [start, end] in seconds with the digits said there; `medium` is the recording, `places` count from 0."""
    return tuple(
        {"span": [round(t, 3) for t in spans[i]], "label": str(scene.digits[i]), "medium": i} for i in places
    )


def targets_of(scene: Scene, spans: Sequence[Span]) -> tuple[Target, ...]:
    """The digit that fills most of each twentieth of a window; 0 is silence."""
    words = (SILENCE, *map(str, range(DIGITS)))
    edges = np.linspace(0, SECONDS, BINS + 1)
    targets = []
    for medium, (digit, (start, end)) in enumerate(zip(scene.digits, spans, strict=True)):
        filled = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0, None)
        labels = tuple(digit + 1 if share >= SURE * SECONDS / BINS else 0 for share in filled)
        targets.append(Target(medium, "spoken/digit", words, (BINS, 1, 1), labels, SECONDS))
    return tuple(targets)
