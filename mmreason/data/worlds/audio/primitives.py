"""Primitive questions of the audio world: one listening answers them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.audio.scenes import TERMS, Heard, Scene
from mmreason.data.worlds.audio.synth import LOUDS, PITCHES, TONES
from mmreason.data.worlds.audio.words import (
    in_order,
    looked_up,
    places,
    plural,
    seen,
    short,
    singular,
    with_loudness,
)
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought

Rng = np.random.Generator
NONE_WEIGHT = 0.5  # "none" is one answer for all terms, so it would be the best guess if it came as often


def names_of(kind: str) -> float:
    """How many names a kind has, one for each pitch: the share of answers that it deserves."""
    return float(len(PITCHES)) if kind in TONES else 1.0


def list_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The whole clip as a list, classed by its length: short ones have little else to ask about."""
    return [Candidate("list", "", len(scene.sounds), ())]


def list_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Every sound with its place: what each thought begins with."""
    total = f"{len(scene.sounds)} in all"
    thought = Thought("listen in order", total, total, total, summary=total)
    text = pick(("list the sounds.", "what do you hear?"), rng)
    return Draft(text, "text", (in_order(scene.sounds),), thought, marks=scene.sounds)


def place_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The first, the last and every numbered sound; each of the 16 names deserves the same share."""
    clip = scene.clips[0]
    asked = [("first", clip[0]), ("last", clip[-1]), *(("number", sound) for sound in clip)]
    return [Candidate("place", how, s.kind, (how, s.place), names_of(s.kind)) for how, s in asked]


def place_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What is heard at one place."""
    how, place = candidate.args
    sound = scene.clips[0][place - 1]
    what = f"sound {place}" if how == "number" else f"the {how} sound"
    thought = Thought(
        f"look at {place if how == 'number' else how}",
        f"{place} {sound.name}",
        f"it is {sound.name}",
        f"{place} is {sound.name}",
    )
    return Draft(
        pick((f"what is {what}?", f"name {what}."), rng), "text", (sound.name,), thought, marks=(sound,)
    )


def count_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """How many of each name, kind or pitch."""
    return [
        Candidate("count", group, scene.count(term), (term,))
        for group, terms in TERMS.items()
        for term in terms
    ]


def count_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Counting up makes the result a copy of the last number said."""
    term = candidate.args[0]
    sounds = scene.find(term)
    up = " ".join(map(str, range(1, len(sounds) + 1))) or "0"
    found = seen(scene, [term])
    thought = Thought(f"count {short(term)}", found, up, f"{found}, so {len(sounds)}")
    text = pick((f"how many {plural(term)} are there?", f"count the {plural(term)}."), rng)
    return Draft(text, "numeric", (str(len(sounds)),), thought, marks=sounds)


def find_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The places of each name, kind or pitch, classed by how many there are."""
    return [
        Candidate("find", group, n, (term,), weight=1.0 if n else NONE_WEIGHT)
        for group, terms in TERMS.items()
        for term in terms
        for n in [scene.count(term)]
    ]


def find_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Places in order: what every longer thought is made of."""
    term = candidate.args[0]
    sounds = scene.find(term)
    total = f"{len(sounds)} in all"
    thought = Thought(f"find {short(term)}", seen(scene, [term]), total, f"{total}: {places(sounds)}")
    text = pick((f"find the {plural(term)}.", f"which places hold {plural(term)}?"), rng)
    return Draft(text, "text", (places(sounds),), thought, marks=sounds)


def _attribute(
    what: str,
    sound: Heard,
    caption: str,
    answer: str,
    texts: tuple[str, ...],
    options: tuple[str, ...],
    rng: Rng,
) -> Draft:
    thought = Thought(f"find {what}", caption, f"it is {answer}", f"{caption}, so {answer}")
    return Draft(pick(texts, rng), "single_choice", (answer,), thought, shuffled(options, rng), (sound,))


def pitch_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Tones that are heard once."""
    once = scene.once("kind").items()
    return [Candidate("pitch", "", sound.pitch, (term, sound)) for term, sound in once if sound.pitch]


def pitch_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The pitch of the one sound of a kind."""
    term, sound = candidate.args
    what = singular(term)
    texts = (f"what pitch is the {what}?", f"name the pitch of the {what}.")
    return _attribute(what, sound, looked_up(what, sound), sound.pitch, texts, PITCHES, rng)


def tone_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Pitches that are heard once."""
    once = scene.once("pitch").items()
    return [Candidate("tone", "", sound.kind, (term, sound)) for term, sound in once]


def tone_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The kind of the one sound of a pitch."""
    term, sound = candidate.args
    what = short(term)
    texts = (f"what is the {singular(term)}?", f"name the {singular(term)}.")
    return _attribute(what, sound, looked_up(what, sound), sound.kind, texts, TONES, rng)


def loud_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Kinds that are heard once, and every place."""
    named = [("kind", singular(term), sound) for term, sound in scene.once("kind").items()]
    numbered = [("place", f"sound {sound.place}", sound) for sound in scene.clips[0]]
    return [Candidate("loud", group, s.loud, (what, s)) for group, what, s in named + numbered]


def loud_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Whether one sound is soft or loud; the thought begins with how loud each is."""
    what, sound = candidate.args
    the = what if candidate.group == "place" else f"the {what}"
    texts = (f"is {the} soft or loud?", f"how loud is {the}?")
    draft = _attribute(what, sound, f"{looked_up(what, sound)} {sound.loud}", sound.loud, texts, LOUDS, rng)
    return replace(draft, noticed=with_loudness(scene.clips[0]))


KINDS = (
    Kind("list", 0.3, list_offers, list_ask),
    Kind("place", 0.1, place_offers, place_ask),
    Kind("find", 0.1, find_offers, find_ask),
    Kind("count", 0.2, count_offers, count_ask),
    Kind("pitch", 0.0, pitch_offers, pitch_ask),
    Kind("tone", 0.0, tone_offers, tone_ask),
    Kind("loud", 0.0, loud_offers, loud_ask),
)
