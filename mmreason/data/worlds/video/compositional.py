"""Compositional questions of the video world: counts combined, order in time, several answers, what if not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.video.physics import VERBS, Clip, Event, Undecided, without
from mmreason.data.worlds.video.primitives import TIMED
from mmreason.data.worlds.video.words import (
    found,
    moments,
    named_options,
    names,
    other_names,
    phrases,
    told,
    up_to,
)

Rng = np.random.Generator
PAIRS = tuple(combinations(VERBS, 2))
OF_THREE = 3  # options of a question about order
SHOWN = 4  # options of a question with several answers


def _pairs(clip: Clip) -> list[tuple[str, str, int, int]]:
    """Two things to do of which at least one was done, with their counts."""
    counts = {verb: len(clip.did(verb)) for verb in VERBS}
    return [(a, b, counts[a], counts[b]) for a, b in PAIRS if counts[a] + counts[b]]


def _arithmetic(clip: Clip, a: str, b: str, verb: str, said: str, texts: Sequence[str], rng: Rng) -> Draft:
    """Two counts, then one line of arithmetic that ends in the answer."""
    caption = f"{a} {names(clip.did(a))}, {b} {names(clip.did(b))}"
    thought = Thought(f"count {a} and {b}, {verb}", caption, said, f"{caption}, {said}")
    return Draft(pick(texts, rng), "numeric", (said.split()[-1],), thought, marks=clip.did(a) + clip.did(b))


def sum_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Two things to do."""
    return [Candidate("sum", "moved" if a == "moved" else "", n + m, (a, b)) for a, b, n, m in _pairs(clip)]


def sum_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Two counts added."""
    a, b = shuffled(candidate.args, rng)
    n, m = len(clip.did(a)), len(clip.did(b))
    texts = (f"how many {a} and {b} in all?", f"add the {a} and the {b}.")
    return _arithmetic(clip, a, b, "add", f"{n} + {m} = {n + m}", texts, rng)


def difference_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Two things to do; the larger count is named first, so that the answer is never negative."""
    ordered = [(a, b, n, m) if n >= m else (b, a, m, n) for a, b, n, m in _pairs(clip)]
    return [Candidate("difference", "moved" if a == "moved" else "", n - m, (a, b)) for a, b, n, m in ordered]


def difference_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """One count taken from another."""
    a, b = candidate.args
    n, m = len(clip.did(a)), len(clip.did(b))
    if n == m:
        a, b = shuffled((a, b), rng)
    texts = (f"how many more {a} than {b}?", f"take the {b} from the {a}.")
    return _arithmetic(clip, a, b, "subtract", f"{n} - {m} = {n - m}", texts, rng)


def _each(events: Sequence[Event]) -> str:
    """When each happened, as they are asked: "red star flashed 5, blue circle appeared 2"."""
    return ", ".join(found(e.phrase, [e]) for e in events)


def order_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Three events of three things, and which end of time is asked for; what a hit made is left out."""
    events = [e for e in clip.events if e.verb in TIMED and not e.pushed]
    threes = [three for three in combinations(events, OF_THREE) if len({e.name for e in three}) == OF_THREE]
    return [
        Candidate("order", end, three[i].verb, (three, end, three[i]))
        for three in threes
        for end, i in (("first", 0), ("last", -1))
    ]


def order_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Which of three events came first, or last."""
    three, end, event = candidate.args
    shown = shuffled(three, rng)
    caption, options = _each(shown), tuple(e.phrase for e in shown)
    thought = Thought(
        f"find {end}", caption, f"{end} is {told(event)}", f"{caption}, {end} is {event.phrase}"
    )
    text = pick((f"which of these was {end}?", f"which of these happened {end}?"), rng)
    return Draft(text, "single_choice", (event.phrase,), thought, options, three)


def next_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """An event that is not the last, what followed it, and two other events to choose from."""
    events = [e for e in clip.events if e.verb != "hit" and not e.pushed]
    offers = []
    for i, event in enumerate(events[:-1]):
        others = [e for e in events if e not in (event, events[i + 1])]
        if len(others) >= OF_THREE - 1:
            shown = (events[i + 1], *shuffled(others, rng)[: OF_THREE - 1])
            offers.append(Candidate("next", "", events[i + 1].verb, (event, shown)))
    return offers


def next_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """What came next after one event, among three events."""
    event, (after, *others) = candidate.args
    shown = shuffled([after, *others], rng)
    caption, options = _each((event, *shown)), tuple(e.phrase for e in shown)
    thought = Thought(
        f"find {event.phrase}",
        caption,
        f"after {event.moment} {told(after)}",
        f"{caption}, then {after.phrase}",
    )
    text = pick((f"what came first after {event.phrase}?", f"which was first after {event.phrase}?"), rng)
    return Draft(text, "single_choice", (after.phrase,), thought, options, (event, after))


def before_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """How often one thing was done before, or after, an event of another sort."""
    offers = []
    for event in (e for e in clip.events if e.verb in TIMED and not e.pushed):
        for verb in TIMED:
            doers = tuple(e for e in clip.did(verb) if e.moment != event.moment)
            if verb == event.verb or not doers:
                continue
            early = tuple(e for e in doers if e.moment < event.moment)
            late = tuple(e for e in doers if e.moment > event.moment)
            for side, right in (("before", early), ("after", late)):
                offers.append(
                    Candidate("before", f"{side} {verb}", len(right), (event, verb, side, right, doers))
                )
    return offers


def before_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """A count on one side of an event."""
    event, verb, side, right, doers = candidate.args
    caption = f"{found(event.phrase, [event])}, {found(verb, doers)}"
    said = f"{side} {event.moment} is {moments(right)}, {up_to(len(right))}"
    thought = Thought(f"find {event.phrase}, count {verb} {side}", caption, said, f"{caption}, {said}")
    text = pick(
        (
            f"how many things {verb} {side} {event.phrase}?",
            f"count the things that {verb} {side} {event.phrase}.",
        ),
        rng,
    )
    return Draft(text, "numeric", (str(len(right)),), thought, marks=(event, *right))


def _tail(phrase: str) -> str:
    """What was done, without the name: "red star moved left" -> "moved left"."""
    return phrase.split(" ", 2)[2]


def _false_twins(clip: Clip, true: Sequence[Event], models: Sequence[Event], n: int, rng: Rng) -> list[str]:
    """Up to n phrases that are not true: what a model did, said of another thing that did not."""
    wrong: list[str] = []
    models = shuffled(models, rng)
    for i in range(n):
        tail = _tail(models[i % len(models)].phrase)
        doers = [e.name for e in true if _tail(e.phrase) == tail]
        said = [f"{name} {tail}" for name in other_names(clip, doers, rng)]
        wrong += [p for p in said if p not in wrong and p.split()[0] != p.split()[-1]][:1]
    return wrong


def _several(true: Sequence[Event], k: int, clip: Clip, rng: Rng) -> tuple[list[Event], list[str]]:
    """k events that are so and SHOWN - k that are not; both sorts of options do the same things."""
    return list(shuffled(true, rng)[:k]), _false_twins(clip, true, true, SHOWN - k, rng)


def which_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """Four events, k of which happened; the weights make every subset of options equally often right."""
    events = [e for e in clip.events if e.verb in TIMED]
    offers = []
    for k in range(1, min(SHOWN, len(events)) + 1):
        offers.append(Candidate("which", "", k, _several(events, k, clip, rng), weight=comb(SHOWN, k)))
    return offers


def which_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four events happened."""
    chosen, wrong = candidate.args
    options = shuffled([*(e.phrase for e in chosen), *wrong], rng)
    right = tuple(o for o in options if o not in wrong)
    marks = sorted(chosen, key=lambda e: right.index(e.phrase))
    caption = ", ".join(found(o, [e for e in marks if e.phrase == o]) for o in options)
    thought = Thought(
        "find each option", caption, f"{len(right)} of {SHOWN} seen", f"{caption}, so {', '.join(right)}"
    )
    text = pick(("which of these happened?", "which of these did you see?"), rng)
    return Draft(text, "multi_choice", right, thought, options, tuple(marks))


def without_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """A thing to take away that hits or is hit, k events that would happen all the same, and others that would not.

    Options never name the thing itself. An event that its absence prevents is always shown when there is one.
    """
    offers = []
    for name in clip.names:
        hits = [e for e in clip.did("hit") if name in (e.name, e.what)]
        try:
            rest = without(clip, name) if hits else None
        except Undecided:
            continue
        if rest is None:
            continue
        still = [e for e in rest.events if e.verb in TIMED]
        kept = {e.phrase for e in still}
        lost = [e.phrase for e in clip.events if e.verb in TIMED and e.name != name and e.phrase not in kept]
        for k in range(1, min(SHOWN - len(lost), len(still)) + 1):
            models = [e for e in still if not lost or e.verb != "moved"] or still  # `lost` are moves already
            chosen, twins = shuffled(still, rng)[:k], _false_twins(rest, still, models, SHOWN - k, rng)
            wrong = [*lost, *(p for p in twins if p not in lost and not p.startswith(name))][: SHOWN - k]
            if len(wrong) == SHOWN - k:
                offers.append(Candidate("without", "", k, (name, chosen, wrong), weight=comb(SHOWN, k)))
    return offers


def without_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four events would still happen if one thing were not there."""
    name, chosen, wrong = candidate.args
    options = shuffled([*(e.phrase for e in chosen), *wrong], rng)
    right = tuple(o for o in options if o not in wrong)
    rest = without(clip, name)
    still = [e for e in rest.events if e.verb in TIMED]
    hits = [e for e in clip.did("hit") if name in (e.name, e.what)]
    gone = [e for e in clip.events if e.name == name or e.phrase not in {s.phrase for s in rest.events}]
    caption = f"without {name} not {phrases(gone)}"
    thought = Thought(
        f"take {name} away", caption, f"still {phrases(still)}", f"{caption}, so {', '.join(right)}"
    )
    text = pick(
        (
            f"which of these would still happen without the {name}?",
            f"take the {name} away: which of these happen?",
        ),
        rng,
    )
    return Draft(text, "multi_choice", right, thought, options, tuple(hits))


def same_offers(clip: Clip, rng: Rng) -> list[Candidate]:
    """A thing that moved, and how many others moved the same way."""
    moved = clip.did("moved")
    offers = []
    for event in moved:
        others = tuple(e for e in moved if e.what == event.what and e != event)
        if others:
            offers.append(
                Candidate("same", "", len(others), (event, others), weight=comb(OF_THREE, len(others)))
            )
    return offers


def same_ask(clip: Clip, candidate: Candidate, rng: Rng) -> Draft:
    """Which things moved the same way as one."""
    event, others = candidate.args
    right_names = [e.name for e in others]
    options = named_options(right_names, clip, OF_THREE, rng, but=event.name)
    right = tuple(o for o in options if o in right_names)
    caption = phrases(clip.did("moved"))
    thought = Thought(
        f"find moved {event.what}",
        caption,
        f"{event.what} {', '.join(right)}",
        f"{caption}, so {', '.join(right)}",
    )
    text = pick(
        (
            f"which of these moved the same way as the {event.name}?",
            f"the {event.name} moved: which of these moved that way?",
        ),
        rng,
    )
    return Draft(text, "multi_choice", right, thought, options, (event, *others))


KINDS: tuple[Kind[Clip], ...] = (
    Kind("sum", 0.6, sum_offers, sum_ask),
    Kind("difference", 0.7, difference_offers, difference_ask),
    Kind("order", 0.6, order_offers, order_ask),
    Kind("next", 0.7, next_offers, next_ask),
    Kind("before", 0.8, before_offers, before_ask),
    Kind("which", 0.8, which_offers, which_ask),
    Kind("same", 0.8, same_offers, same_ask),
    Kind("without", 1.0, without_offers, without_ask),
)
