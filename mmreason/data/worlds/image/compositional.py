"""Compositional questions of the image world: two looks, then a sum, a comparison or a choice of several."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.image.scenes import (
    COLOUR_TERMS,
    COLUMNS,
    OBJECT_TERMS,
    ROWS,
    SHAPE_TERMS,
    TERMS,
    Scene,
    Term,
    Thing,
)
from mmreason.data.worlds.image.words import counted, plural, seen, short
from mmreason.data.worlds.rows import Thought

Rng = np.random.Generator
DIRECTIONS = ("left", "right", "above", "below")
PAIRS: dict[str, tuple[tuple[Term, Term], ...]] = {g: tuple(combinations(t, 2)) for g, t in TERMS.items()}
ATTRIBUTES: dict[str, tuple[Term, ...]] = {"colour": COLOUR_TERMS, "shape": SHAPE_TERMS}
SAME = "same"
SHOWN = 4  # options of a `which` question


def _in_some_order(pair: tuple[Term, Term], rng: Rng) -> tuple[Term, Term]:
    return pair if rng.random() < 0.5 else (pair[1], pair[0])


def _pairs(scene: Scene) -> list[tuple[str, Term, Term, int, int]]:
    """Pairs of terms of one group of which the picture shows at least one thing, with their counts."""
    return [
        (group, a, b, n, m)
        for group, pairs in PAIRS.items()
        for a, b in pairs
        if (n := scene.count(a)) + (m := scene.count(b)) > 0
    ]


def sum_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group, of which the picture shows at least one thing."""
    return [Candidate("sum", group, n + m, (a, b)) for group, a, b, n, m in _pairs(scene)]


def sum_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Two counts added."""
    a, b = _in_some_order(candidate.args, rng)
    n, m = scene.count(a), scene.count(b)
    found = seen(scene, (a, b))
    thought = Thought(
        f"count {short(a)} and {short(b)}, add",
        found,
        f"{n} + {m} = {n + m}",
        f"{found}, {n} + {m} = {n + m}",
    )
    text = pick(
        (f"how many {plural(a)} and {plural(b)} in all?", f"add the {plural(a)} and the {plural(b)}."), rng
    )
    return Draft(text, "numeric", (str(n + m),), thought, marks=scene.find(a) + scene.find(b))


def difference_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group; the answer is never negative because the larger count is named first."""
    ordered = [(g, a, b, n, m) if n >= m else (g, b, a, m, n) for g, a, b, n, m in _pairs(scene)]
    return [Candidate("difference", group, n - m, (a, b)) for group, a, b, n, m in ordered]


def difference_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """One count taken from another."""
    a, b = candidate.args
    n, m = scene.count(a), scene.count(b)
    if n == m:
        a, b = _in_some_order((a, b), rng)
    found = seen(scene, (a, b))
    thought = Thought(
        f"count {short(a)} and {short(b)}, subtract",
        found,
        f"{n} - {m} = {n - m}",
        f"{found}, {n} - {m} = {n - m}",
    )
    text = pick(
        (f"how many more {plural(a)} than {plural(b)}?", f"take the {plural(b)} from the {plural(a)}."), rng
    )
    return Draft(text, "numeric", (str(n - m),), thought, marks=scene.find(a) + scene.find(b))


def more_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group, classed by whether the first, the second or neither is more."""
    offers = []
    for group, a, b, n, m in _pairs(scene):
        a, b, n, m = (a, b, n, m) if rng.random() < 0.5 else (b, a, m, n)
        offers.append(Candidate("more", group, "first" if n > m else "second" if m > n else SAME, (a, b)))
    return offers


def more_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Two counts compared: three options."""
    a, b = candidate.args
    n, m = scene.count(a), scene.count(b)
    sign = ">" if n > m else "<" if n < m else "="
    answer = plural(a) if n > m else plural(b) if n < m else SAME
    found = seen(scene, (a, b))
    thought = Thought(
        f"count {short(a)} and {short(b)}", found, f"{n} {sign} {m}", f"{found}, {n} {sign} {m}, so {answer}"
    )
    text = pick(
        (
            f"are there more {plural(a)}, more {plural(b)} or the same?",
            f"which is more, {plural(a)} or {plural(b)}?",
        ),
        rng,
    )
    things = scene.find(a) + scene.find(b)
    return Draft(
        text, "single_choice", (answer,), thought, shuffled((plural(a), plural(b), SAME), rng), things
    )


def _direction(a: Thing, b: Thing) -> str | None:
    """Where a lies seen from b, when they share exactly a row or a column."""
    if a.row == b.row:
        return "left" if a.column < b.column else "right"
    if a.column == b.column:
        return "above" if a.row < b.row else "below"
    return None


def relation_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Ordered pairs of things that are the only ones of their name and share a row or a column."""
    single = [scene.find(term)[0] for term in OBJECT_TERMS if scene.count(term) == 1]
    pairs = [(a, b, _direction(a, b)) for a in single for b in single if a != b]
    return [Candidate("relation", "", where, (a, b)) for a, b, where in pairs if where]


def relation_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The shared row or column is named first, then the two others are compared."""
    a, b = candidate.args
    where = str(candidate.answer)
    if a.row == b.row:
        shared, one, two = "same row, column", COLUMNS[a.column - 1], COLUMNS[b.column - 1]
    else:
        shared, one, two = "same column, row", ROWS[a.row - 1], ROWS[b.row - 1]
    sign = "<" if one < two else ">"
    found = f"{a.name} {a.cell}, {b.name} {b.cell}"
    why = f"{shared} {one} {sign} {two}"
    thought = Thought(f"find {a.name} and {b.name}", found, f"{why}, {where}", f"{found}, {why}, so {where}")
    text = pick(
        (f"where is the {a.name} seen from the {b.name}?", f"on which side of the {b.name} is the {a.name}?"),
        rng,
    )
    return Draft(text, "single_choice", (where,), thought, shuffled(DIRECTIONS, rng), (a, b))


def most_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The colour, and the shape, that no other equals in number."""
    offers = []
    for group, terms in ATTRIBUTES.items():
        counts = sorted(((scene.count(term), short(term)) for term in terms), reverse=True)
        if counts[0][0] > counts[1][0]:
            offers.append(Candidate("most", group, counts[0][1], (group,)))
    return offers


def most_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The most frequent colour or shape."""
    group, answer = candidate.args[0], str(candidate.answer)
    terms = shuffled(ATTRIBUTES[group], rng)
    numbers = counted(scene, terms)
    thought = Thought(f"count each {group}", seen(scene, terms), numbers, f"{numbers}, so {answer}")
    text = pick((f"which {group} is most frequent?", f"which {group} is there most of?"), rng)
    best = next(term for term in terms if short(term) == answer)
    return Draft(text, "single_choice", (answer,), thought, tuple(map(short, terms)), scene.find(best))


def _absent(scene: Scene, n: int, rng: Rng) -> list[Term]:
    """n objects that are not there, made of the colours and shapes that are: near misses."""
    present = set(scene.by_term)
    colours = [t.colour for t in scene.things]
    shapes = [t.shape for t in scene.things]
    near = [(c, s) for c in colours for s in shapes if (c, s) not in present]
    rest = [term for term in OBJECT_TERMS if term not in present]
    chosen: list[Term] = []
    for pool in (near, rest):
        chosen += [term for term in dict.fromkeys(shuffled(pool, rng)) if term not in chosen]
    return chosen[:n]


def which_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Four named objects, k of them there; the weights make every subset of options equally often right."""
    present = [term for term in OBJECT_TERMS if scene.count(term)]
    offers = []
    for k in range(1, min(SHOWN, len(present)) + 1):
        there = shuffled(present, rng)[:k]
        terms = (*there, *_absent(scene, SHOWN - k, rng))
        offers.append(Candidate("which", "", k, (terms, k), weight=comb(SHOWN, k)))
    return offers


def which_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four named objects are in the picture."""
    terms, k = candidate.args
    shown = shuffled(terms, rng)
    right = tuple(short(term) for term in shown if scene.count(term))
    found = seen(scene, shown)
    there = tuple(thing for term in shown for thing in scene.find(term))
    thought = Thought("find each option", found, f"{k} of {SHOWN} seen", f"{found}, so {', '.join(right)}")
    text = pick(("which of these are in the picture?", "which of these do you see?"), rng)
    return Draft(text, "multi_choice", right, thought, tuple(map(short, shown)), there)


def twice_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Colours, and shapes, that occur at least twice: every subset of the four is its own answer class."""
    offers = []
    for group, terms in ATTRIBUTES.items():
        often = tuple(short(term) for term in terms if scene.count(term) >= 2)
        if often:
            offers.append(Candidate("twice", group, often, (group,)))
    return offers


def twice_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which colours, or shapes, occur at least twice."""
    group = candidate.args[0]
    terms = shuffled(ATTRIBUTES[group], rng)
    often = [term for term in terms if scene.count(term) >= 2]
    numbers = counted(scene, terms)
    thought = Thought(
        f"count each {group}", seen(scene, terms), numbers, f"{numbers}, so {', '.join(map(short, often))}"
    )
    text = pick(
        (f"which {group}s are there at least twice?", f"which {group}s are there two or more times?"), rng
    )
    things = tuple(thing for term in often for thing in scene.find(term))
    return Draft(text, "multi_choice", tuple(map(short, often)), thought, tuple(map(short, terms)), things)


KINDS = (
    Kind("sum", 0.6, sum_offers, sum_ask),
    Kind("difference", 0.7, difference_offers, difference_ask),
    Kind("more", 0.6, more_offers, more_ask),
    Kind("relation", 0.8, relation_offers, relation_ask),
    Kind("most", 0.8, most_offers, most_ask),
    Kind("which", 0.8, which_offers, which_ask),
    Kind("twice", 1.0, twice_offers, twice_ask),
)
