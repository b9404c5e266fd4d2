"""Primitive questions of the AV world: one moment, found by one sense and looked up by the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.av.scenes import Heard, Scene
from mmreason.data.worlds.av.words import listed, told
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.video.physics import Event
from mmreason.data.worlds.video.words import found
from mmreason.data.worlds.video.words import told as seen

Rng = np.random.Generator
LEAST = 3  # options: with fewer, one sense alone would guess too well


def list_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The whole scene: one offer."""
    return [Candidate("list", "", "", ())]


def list_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Everything seen, then everything heard: what each thought begins with."""
    total = f"{len(scene.events)} seen, {len(scene.sounds)} heard"
    thought = Thought("look and listen in order", total, total, total, summary=total)
    text = pick(("list what you see and hear.", "what do you see and hear?"), rng)
    return Draft(text, "text", (listed(scene),), thought, marks=(*scene.events, *scene.sounds))


def _choice(
    first: Event | Heard,
    second: Event | Heard,
    answer: str,
    texts: Sequence[str],
    options: Sequence[str],
    rng: Rng,
) -> Draft:
    """The moment known from one sense, then what the other has there."""
    term = first.kind if isinstance(first, Heard) else first.phrase
    caption = f"{found(term, [first])}, {told(second) if isinstance(second, Heard) else seen(second)}"
    thought = Thought(f"find {term}", caption, f"it is {answer}", f"{caption}, so {answer}")
    return Draft(
        pick(texts, rng), "single_choice", (answer,), thought, shuffled(options, rng), (first, second)
    )


def at_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Sounds at whose moment something happens, among three events or more."""
    pairs = scene.together if len(scene.events) >= LEAST else ()
    return [Candidate("at", "", event.verb, (event, sound)) for event, sound in pairs]


def at_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What is seen to happen when a sound is heard."""
    event, sound = candidate.args
    texts = (f"what happened at the {sound.kind}?", f"what did you see at the {sound.kind}?")
    return _choice(sound, event, event.phrase, texts, [e.phrase for e in scene.events], rng)


def heard_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Events at whose moment there is a sound, among three sounds or more."""
    pairs = scene.together if len(scene.sounds) >= LEAST else ()
    return [Candidate("heard", "", sound.kind, (event, sound)) for event, sound in pairs]


def heard_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What is heard when something happens."""
    event, sound = candidate.args
    texts = (f"what did you hear when {event.phrase}?", f"which sound was heard when {event.phrase}?")
    return _choice(event, sound, sound.name, texts, [s.name for s in scene.sounds], rng)


def _attribute(kind: str, place: int) -> Kind[Scene]:
    """The colour, or the shape, of the thing that does something at a sound; all things differ in it."""

    def offers(scene: Scene, rng: Rng) -> list[Candidate]:
        values = [event.name.split()[place] for event in scene.events]
        clear = len(values) >= LEAST and len(set(values)) == len(values)
        if not clear or (kind == "colour" and any(event.verb == "turned" for event in scene.events)):
            return []
        return [
            Candidate(kind, "", event.name.split()[place], (event, sound)) for event, sound in scene.together
        ]

    def ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
        event, sound = candidate.args
        texts = (
            f"what {kind} is the thing at the {sound.kind}?",
            f"name the {kind} of the thing at the {sound.kind}.",
        )
        return _choice(
            sound, event, str(candidate.answer), texts, [e.name.split()[place] for e in scene.events], rng
        )

    return Kind(kind, 0.2, offers, ask)


KINDS: tuple[Kind[Scene], ...] = (
    Kind("list", 0.3, list_offers, list_ask),
    Kind("at", 0.1, at_offers, at_ask),
    Kind("heard", 0.1, heard_offers, heard_ask),
    _attribute("colour", 0),
    _attribute("shape", 1),
)
