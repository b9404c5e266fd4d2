"""Drills: many look-ups in one list at a time, which is what every longer thought about a list is made of.

A small LLM copies a list off a medium long before it can find in it what a word names; a dozen look-ups to a row,
and no medium to encode, teach that some ten times faster than questions about media do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.video.physics import VERBS as ALONE
from mmreason.data.worlds.words.listings import NONE, SOUNDS, THINGS, Entry, Listing, places

Rng = np.random.Generator
Drill = Callable[
    [Listing, Rng], tuple[str, list[str], list[str]]
]  # what is asked, of which words, what is found
VERBS = (*ALONE, "hit")
TERMS = 6  # words to a drill
ABSENT = 3  # at least one word in so many is not in the list


def terms(entries: Sequence[Entry], vocabulary: Sequence[str], n: int, rng: Rng) -> list[str]:
    """n words in random order, most of them in the list."""
    there = shuffled([t for t in vocabulary if any(e.is_a(t) for e in entries)], rng)
    missing = shuffled([t for t in vocabulary if t not in there], rng)
    present = there[: n - n // ABSENT]
    return list(shuffled([*present, *missing[: n - len(present)]], rng))


def _find(vocabulary: Sequence[str], which: int) -> Drill:
    def drill(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
        entries = listing.lists[which]
        asked = terms(entries, vocabulary, TERMS, rng)
        return "find each", asked, [f"{t} {places(entries, t)}" for t in asked]

    return drill


def _count(vocabulary: Sequence[str]) -> Drill:
    def drill(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
        (entries,) = listing.lists
        asked = terms(entries, vocabulary, TERMS, rng)
        found = [f"{t} {places(entries, t)} is {sum(e.is_a(t) for e in entries)}" for t in asked]
        return "count each", asked, found

    return drill


def _name(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    (entries,) = listing.lists
    chosen = [entries[int(i)] for i in rng.integers(len(entries), size=TERMS)]
    return "name each", [e.place for e in chosen], [f"{e.place} {e.said}" for e in chosen]


def _clips(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    first, second = listing.lists
    asked = terms((*first, *second), SOUNDS, TERMS - 1, rng)
    return "find each", asked, [f"{t} first {places(first, t)}, second {places(second, t)}" for t in asked]


def _at(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    """Each sound, and what is seen at its moment."""
    seen, heard = listing.lists
    seen_at = {e.place: e.said for e in seen}
    asked = terms(heard, SOUNDS, TERMS, rng)
    found = [[f"{s.place} {seen_at.get(s.place, NONE)}" for s in heard if s.is_a(t)] for t in asked]
    return "what is at each", asked, [f"{t} {' '.join(f) or NONE}" for t, f in zip(asked, found, strict=True)]


def _sound(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    """Each event, and what is heard at its moment."""
    seen, heard = listing.lists
    heard_at = {s.place: s.name for s in heard}
    asked = shuffled(seen, rng)
    found = [f"{e.said} {e.place} {heard_at.get(e.place, NONE)}" for e in asked]
    return "what sound has each", [e.said for e in asked], found


def _when(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    (entries,) = listing.lists
    asked = shuffled(entries, rng)
    return "when is each", [e.said for e in asked], [f"{e.said} {e.place}".rstrip() for e in asked]


def _did(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    """Everything there is to do, and when it was done."""
    (entries,) = listing.lists
    asked = list(shuffled(VERBS, rng))[: TERMS - 1]
    doing = {verb: [e.place or "stayed" for e in entries if e.did.split()[0] == verb] for verb in asked}
    return "find each", asked, [f"{v} {' '.join(p) or NONE}" for v, p in doing.items()]


def _who(listing: Listing, rng: Rng) -> tuple[str, list[str], list[str]]:
    (entries,) = listing.lists
    asked = list(shuffled(VERBS, rng))[: TERMS - 1]
    found = [" ".join(e.name for e in entries if e.did.split()[0] == verb) for verb in asked]
    return "who does each", asked, [f"{v} {f or NONE}" for v, f in zip(asked, found, strict=True)]


def _kind(name: str, drill: Drill) -> Kind[Listing]:
    def offers(listing: Listing, rng: Rng) -> list[Candidate]:
        return [Candidate(name, "", "", ())]

    def ask(listing: Listing, candidate: Candidate, rng: Rng) -> Draft:
        what, asked, found = drill(listing, rng)
        answer = ", ".join(found)
        thought = Thought(what, answer, f"{len(asked)} in all", answer, summary=f"{len(asked)} in all")
        return Draft(f"{what}: {', '.join(asked)}.", "text", (answer,), thought)

    return Kind(name, 0.0, offers, ask)


def _kinds(**drills: Drill) -> tuple[Kind[Listing], ...]:
    return tuple(_kind(name, drill) for name, drill in drills.items())


PICTURE = _kinds(picture_find=_find(THINGS, 0), picture_count=_count(THINGS), picture_name=_name)
ONE_CLIP = _kinds(sounds_find=_find(SOUNDS, 0), sounds_count=_count(SOUNDS), sounds_name=_name)
TWO_CLIPS = _kinds(clips_find=_clips)
EVENTS = _kinds(events_find=_find(THINGS, 0), events_when=_when, events_did=_did, events_who=_who)
FILM = _kinds(film_find=_find(SOUNDS, 1), film_at=_at, film_sound=_sound)
