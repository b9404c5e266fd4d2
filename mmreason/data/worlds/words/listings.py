"""Scenes of the other worlds as lists of words, just as thoughts write them, for questions without a medium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mmreason.data.worlds.audio.scenes import Scene as Sounds
from mmreason.data.worlds.audio.synth import PITCHES, SYLLABLES, TONES
from mmreason.data.worlds.audio.words import listed as sounds_listed
from mmreason.data.worlds.av.scenes import Heard
from mmreason.data.worlds.av.scenes import Scene as Film
from mmreason.data.worlds.av.words import listed as film_listed
from mmreason.data.worlds.image.scenes import COLOURS, SHAPES
from mmreason.data.worlds.image.scenes import Scene as Picture
from mmreason.data.worlds.image.words import listed as picture_listed
from mmreason.data.worlds.video.physics import Clip, Event
from mmreason.data.worlds.video.words import listed as events_listed

NONE = "none"


def _vocabulary(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Every word, and every two of them: "red", "star", "red star"."""
    return (*first, *second, *(f"{a} {b}" for a, b in product(first, second)))


THINGS = _vocabulary(COLOURS, SHAPES)
SOUNDS = (*_vocabulary(PITCHES, TONES), *SYLLABLES)


@dataclass(frozen=True)
class Entry:
    """One entry of a list. Example: `Entry("3", "red star", "moved left")`, `Entry("b2", "red star")`."""

    place: str  # a cell, a number in a clip, a moment; "" for what has none: a thing that stayed
    name: str
    did: str = ""

    @property
    def said(self) -> str:
        """All but the place: "red star moved left"."""
        return f"{self.name} {self.did}".rstrip()

    def is_a(self, term: str) -> bool:
        """Whether all words of the term are in the name: "star" and "red star" name a red star."""
        return set(term.split()) <= set(self.name.split())


@dataclass(frozen=True)
class Listing:
    """A scene in words: its text, and the entries of each of its lists (one for each clip; of a film with sound what
    is seen, then what is heard)."""

    text: str
    lists: tuple[tuple[Entry, ...], ...]


def picture(scene: Picture) -> Listing:
    """Things by their cells."""
    return Listing(picture_listed(scene), (tuple(Entry(t.cell, t.name) for t in scene.things),))


def sounds(scene: Sounds) -> Listing:
    """Sounds by their numbers, clip after clip."""
    clips = tuple(tuple(Entry(str(s.place), s.name) for s in clip) for clip in scene.clips)
    return Listing(sounds_listed(scene), clips)


def events(clip: Clip) -> Listing:
    """What happened in a film, by its moments."""
    return Listing(events_listed(clip.entries), (tuple(map(_event, clip.entries)),))


def film(scene: Film) -> Listing:
    """What is seen and what is heard, by moments."""
    return Listing(film_listed(scene), (tuple(map(_event, scene.events)), tuple(map(_sound, scene.sounds))))


def _event(event: Event) -> Entry:
    place = "" if event.verb == "stayed" else str(event.moment)
    return Entry(place, event.name, f"{event.verb} {event.what}".rstrip())


def _sound(sound: Heard) -> Entry:
    return Entry(str(sound.moment), sound.name)


def places(entries: Sequence[Entry], term: str) -> str:
    """The places of what a term names, in order, or "none"; "stayed" for what has no place: "2 5 stayed"."""
    return " ".join(e.place or "stayed" for e in entries if e.is_a(term)) or NONE
