"""Primitive questions of the video world: one event, or one look at the whole list, answers them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.image.scenes import COLOURS
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.video.physics import MOMENTS, VERBS, WAYS, Clip, Event
from mmreason.data.worlds.video.words import found, listed, named_options, names, told, up_to

Rng = np.random.Generator
SHOWN = 4  # options of a question about names
NONE_WEIGHT = 0.5  # an empty picture is one answer, so it would be the best guess if it came as often
TIMED = tuple(verb for verb in VERBS if verb != "stayed")


def list_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """The whole clip as a list, classed by its length."""
    return [Candidate("list", "", len(clip.entries), ())]


def list_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Everything that happened, in order: what each thought begins with."""
    total = f"{len(clip.entries)} in all"
    thought = Thought("look in order", total, total, total, summary=total)
    text = pick(("list what happened.", "what happened?"), rng)
    return Draft(text, "text", (listed(clip.entries),), thought, marks=clip.entries)


def _frame(clip: Clip, moment: int) -> list[str]:
    """What is there at one moment, in reading order, as the image world lists it: ["a2 red star"]."""
    there = [(track[moment - 1], actor) for actor, track in zip(clip.actors, clip.tracks, strict=True)]
    return sorted(f"{look.cell} {look.colour} {actor.shape}" for look, actor in there if look)


def frame_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Every moment, classed by how much is there."""
    counts = [len(_frame(clip, moment)) for moment in range(1, MOMENTS + 1)]
    return [
        Candidate("frame", "", n, (moment,), weight=1.0 if n else NONE_WEIGHT / 4)
        for moment, n in enumerate(counts, start=1)
    ]


def frame_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Things and their cells at one moment, which are all that the thought notices."""
    moment = candidate.args[0]
    there = _frame(clip, moment)
    said = ", ".join(there) or "empty"
    total = f"{len(there)} at {moment}"
    thought = Thought(f"look at {moment}", total, total, said)
    text = pick((f"list the things at {moment}.", f"what do you see at {moment}?"), rng)
    return Draft(text, "text", (said,), thought, noticed=said)


def count_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """How many things did each thing there is to do, and how many there are."""
    offers = [Candidate("count", verb, len(clip.did(verb)), (verb,)) for verb in VERBS]
    return [*offers, Candidate("count", "all", len(clip.actors), ("",))]


def count_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The names, then counting up."""
    verb = candidate.args[0]
    doers = clip.did(verb) if verb else ()
    who = names(doers) if verb else ", ".join(clip.names)
    n = len(doers) if verb else len(clip.actors)
    thought = Thought(f"count {verb or 'all'}", f"{verb or 'all'} {who}", up_to(n), f"{who}, so {n}")
    texts = (f"how many things {verb}?", f"count the things that {verb}.")
    text = pick(texts if verb else ("how many things are there in all?", "count all things."), rng)
    return Draft(text, "numeric", (str(n),), thought, marks=doers)


def _choice(
    what: str, event: Event, answer: str, texts: Sequence[str], options: tuple[str, ...], rng: Rng
) -> Draft:
    caption = f"{found(what, [event])}, {told(event)}"
    thought = Thought(f"find {what}", caption, f"it is {answer}", f"{caption}, so {answer}")
    return Draft(pick(texts, rng), "single_choice", (answer,), thought, options, (event,))


def way_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Things that moved."""
    return [Candidate("way", "", e.what, (e,)) for e in clip.did("moved")]


def way_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The way one thing moved."""
    event = candidate.args[0]
    texts = (f"the {event.name} moved which way?", f"name the way the {event.name} moved.")
    return _choice(f"{event.name} moved", event, event.what, texts, shuffled(WAYS, rng), rng)


def who_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Whatever only one thing did."""
    return [Candidate("who", "", verb, (doers[0],)) for verb in VERBS if len(doers := clip.did(verb)) == 1]


def who_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The one thing that did it."""
    event = candidate.args[0]
    options = named_options([event.name], clip, SHOWN, rng)
    texts = (f"which thing {event.verb}?", f"name the thing that {event.verb}.")
    return _choice(event.verb, event, event.name, texts, options, rng)


def first_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Whatever several things did, at the two ends of time."""
    several = [doers for verb in TIMED if len(doers := clip.did(verb)) >= 2]
    return [
        Candidate("first", end, f[i].verb, (f, i)) for f in several for end, i in (("first", 0), ("last", -1))
    ]


def first_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Which of several did it first, or last."""
    doers, end = candidate.args
    event, verb = doers[end], doers[0].verb
    word = "first" if end == 0 else "last"
    options = named_options([event.name], clip, SHOWN, rng)
    caption = found(verb, doers)
    thought = Thought(
        f"find {verb} {word}", caption, f"{word} is {told(event)}", f"{caption}, {word} is {event.name}"
    )
    text = pick((f"which thing {verb} {word}?", f"name the thing that {verb} {word}."), rng)
    return Draft(text, "single_choice", (event.name,), thought, options, (event,))


def turned_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Things that turned another colour."""
    return [Candidate("turned", "", e.what, (e,)) for e in clip.did("turned")]


def turned_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The colour a thing turned; its first colour is no option, since nothing turns what it is."""
    event = candidate.args[0]
    others = [colour for colour in COLOURS if colour != event.name.split()[0]]
    texts = (f"the {event.name} turned which colour?", f"name the colour the {event.name} turned.")
    return _choice(f"{event.name} turned", event, event.what, texts, shuffled(others, rng), rng)


def when_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Every event that begins at a moment of its own."""
    return [Candidate("when", "", e.moment, (e,)) for e in clip.events if e.verb in TIMED and not e.pushed]


def when_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The moment of one event."""
    event = candidate.args[0]
    short = f"{event.name} {event.verb}"
    at, caption = f"at {event.moment}", found(short, [event])
    thought = Thought(f"find {short}", caption, at, f"{caption}, so {event.moment}")
    text = pick((f"when was it: {short}?", f"name the moment: {short}."), rng)
    return Draft(text, "numeric", (str(event.moment),), thought, marks=(event,))


def did_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Things with one entry in the list."""
    entries = [[e for e in clip.entries if e.name == name] for name in clip.names]
    return [Candidate("did", "", mine[0].verb, (mine[0],)) for mine in entries if len(mine) == 1]


def did_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The one thing it did."""
    event = candidate.args[0]
    others = [verb for verb in shuffled(VERBS, rng) if verb != event.verb][: SHOWN - 1]
    texts = (f"what did the {event.name} do?", f"name what the {event.name} did.")
    return _choice(event.name, event, event.verb, texts, shuffled([event.verb, *others], rng), rng)


def where_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """The cell of each thing at the first and at the last moment, where it is there and looks as it is named."""
    offers = []
    for name in clip.names:
        for word, moment in (("first", 1), ("last", MOMENTS)):
            look = clip.track(name)[moment - 1]
            if look and look.colour == name.split()[0]:
                offers.append(Candidate("where", word, look.cell, (name, word, moment)))
    return offers


def where_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """The cell of one thing at one end of time; the thought begins with all that is there then."""
    name, word, moment = candidate.args
    cell = str(candidate.answer)
    thought = Thought(
        f"find {name} at {moment}", f"{name} {cell}", f"it is at {cell}", f"at {moment} {name} at {cell}"
    )
    text = pick((f"where is the {name} {word}?", f"which cell holds the {name} {word}?"), rng)
    marks = tuple(e for e in clip.entries if e.name == name)
    return Draft(text, "text", (cell,), thought, marks=marks, noticed=", ".join(_frame(clip, moment)))


def hit_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Hits, asked from either side."""
    hits = clip.did("hit")
    return [Candidate("hit", side, "", (e, side)) for e in hits for side in ("what", "which")]


def hit_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """What a thing hit, or what it was hit by."""
    event, side = candidate.args
    answer, other = (event.what, event.name) if side == "what" else (event.name, event.what)
    options = named_options([answer], clip, SHOWN, rng, but=other)
    texts = (
        (f"what did the {other} hit?", f"name what the {other} hit.")
        if side == "what"
        else (f"which thing hit the {other}?", f"name the thing that hit the {other}.")
    )
    return _choice(f"{other} hit" if side == "what" else f"hit {other}", event, answer, texts, options, rng)


KINDS: tuple[Kind[Clip], ...] = (
    Kind("list", 0.3, list_offers, list_ask),
    Kind("frame", 0.2, frame_offers, frame_ask),
    Kind("count", 0.2, count_offers, count_ask),
    Kind("way", 0.0, way_offers, way_ask),
    Kind("who", 0.0, who_offers, who_ask),
    Kind("first", 0.2, first_offers, first_ask),
    Kind("turned", 0.0, turned_offers, turned_ask),
    Kind("when", 0.1, when_offers, when_ask),
    Kind("did", 0.0, did_offers, did_ask),
    Kind("where", 0.2, where_offers, where_ask),
    Kind("hit", 0.2, hit_offers, hit_ask),
)
