"""The words world: lists of what other worlds show and play, in words, and questions about them; no medium.

An LLM learns here to reason over what a thought has noticed, apart from learning to notice it. The scenes are those
of the other worlds, train ones in train rows: no test scene is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmreason.data.worlds import audio, av, image, video
from mmreason.data.worlds.asking import Asker, Kind, merged
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Question, SceneItem, World, WorldSettings
from mmreason.data.worlds.words import drills, listings
from mmreason.data.worlds.words.listings import Listing

Rng = np.random.Generator


@dataclass(frozen=True)
class Told:
    """What a world's scenes become in words: how to list one, what to drill, and what a list cannot answer."""

    name: str
    asker: Asker[Any]
    listing: Callable[[Any], Listing]
    drills: tuple[Kind[Listing], ...]
    unsaid: tuple[str, ...]  # kinds that need the medium itself, or ask for nothing but the list


TOLD = (
    Told("picture", image.ASKER, listings.picture, drills.PICTURE, ("list", "caption")),
    Told("sounds", audio.ASKERS[0], listings.sounds, drills.ONE_CLIP, ("list", "loud", "louder")),
    Told("clips", audio.ASKERS[1], listings.sounds, drills.TWO_CLIPS, ()),
    Told("events", video.ASKER, listings.events, drills.EVENTS, ("list", "frame", "where")),
    Told("film", av.ASKER, listings.film, drills.FILM, ("list",)),
)


def size_of(listing: Listing) -> int:
    """1 is the least: entries, not counting the first of a second list."""
    return sum(map(len, listing.lists)) - len(listing.lists) + 1


def _item(name: str, listing: Listing, questions: Sequence[Question]) -> SceneItem:
    """The list goes before every question."""
    return SceneItem(name, (), tuple(replace(q, text=f"{listing.text}. {q.text}") for q in questions))


def _drilled(told: Told) -> Asker[Listing]:
    def draw(sizes: Sequence[int], split: str, rng: Rng) -> Listing:
        return told.listing(told.asker.draw(sizes, split, rng))

    def write(listing: Listing, chosen: list[Candidate], name: str, rng: Rng) -> SceneItem:
        questions = asker.questions(listing, chosen, listing.text, lambda marks: (), rng)
        return _item(f"{name}-{told.name}", listing, questions)

    kinds = {kind.name: kind for kind in told.drills}
    asker = Asker(f"words {told.name}", kinds, told.asker.most, size_of, draw, write)
    return asker


def _asked(told: Told) -> Asker[Any]:
    """The questions of the world itself, about its scenes in words."""

    def write(scene: Any, chosen: list[Candidate], name: str, rng: Rng) -> SceneItem:
        listing = told.listing(scene)
        questions = asker.questions(scene, chosen, listing.text, lambda marks: (), rng)
        return _item(
            f"{name}-told-{told.name}", listing, [replace(q, kind=f"told_{told.name}") for q in questions]
        )

    kinds = {name: kind for name, kind in told.asker.kinds.items() if name not in told.unsaid}
    asker = replace(told.asker, world=f"words {told.asker.world}", kinds=kinds, write=write)
    return asker


DRILLED = tuple(map(_drilled, TOLD))
ASKED = {f"told_{told.name}": _asked(told) for told in TOLD}
GROUPS = {"drill": tuple(kind for asker in DRILLED for kind in asker.kinds), "told": tuple(ASKED)}


def scenes(settings: WorldSettings) -> Iterator[SceneItem]:
    """Endless lists with their questions, every kind of question asked about as often.

    Raises ValueError when no list of the difficulty asked for can carry the kinds asked for.
    """
    drilled = [
        (asker, replace(settings, kinds=tuple(k for k in settings.kinds if k in asker.kinds)))
        for asker in DRILLED
    ]
    asked = [
        (asker, replace(settings, kinds=tuple(asker.kinds)))
        for name, asker in ASKED.items()
        if name in settings.kinds
    ]
    weights = [*(len(share.kinds) for _, share in drilled), *(1 for _ in asked)]
    return merged([*drilled, *asked], weights, settings)


WORLD = World("words", 1, (*GROUPS["drill"], *GROUPS["told"]), GROUPS, scenes)
