"""Primitive questions of the image world: one look at the picture answers them."""

from __future__ import annotations

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.image.scenes import (
    COLOUR_TERMS,
    COLOURS,
    ROWS,
    SHAPE_TERMS,
    SHAPES,
    SIDE,
    TERMS,
    Scene,
    cell_name,
)
from mmreason.data.worlds.image.words import cells, listed, plural, seen, short, singular
from mmreason.data.worlds.rows import Thought

Rng = np.random.Generator
EMPTY = "empty"
NONE_WEIGHT = 0.5  # "none" is one answer for all terms, so it would be the best guess if it came as often
ROW_WEIGHTS = {1: 1.0, 2: 1.0, 3: 0.4, 4: 0.1}  # by the number of things in the row: full rows are rare


def _line(scene: Scene, row: int) -> str:
    """One grid row in words: "empty red star empty empty"."""
    things = (scene.by_cell.get((row, column)) for column in range(1, SIDE + 1))
    return " ".join(thing.name if thing else EMPTY for thing in things)


def caption_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The whole picture: one offer."""
    return [Candidate("caption", "", "", ())]


def caption_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Every cell in reading order, a dense target that ties words to places."""
    per_row = [sum(t.row == row for t in scene.things) for row in range(1, SIDE + 1)]
    counts = " ".join(map(str, per_row))
    total = f"{len(scene.things)} in all"
    thought = Thought("read row by row", f"rows hold {counts}", total, f"rows hold {counts}", summary=total)
    answer = " ".join(f"row {name} {_line(scene, row)}" for row, name in enumerate(ROWS, start=1))
    text = pick(("describe the picture.", "name every cell."), rng)
    return Draft(text, "text", (answer,), thought, marks=scene.things)


def list_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The whole picture as a list: one offer."""
    return [Candidate("list", "", "", ())]


def list_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Every thing with its cell: what each thought begins with."""
    total = f"{len(scene.things)} in all"
    thought = Thought("read row by row", total, total, total, summary=total)
    text = pick(("list the things.", "what do you see?"), rng)
    return Draft(text, "text", (listed(scene),), thought, marks=scene.things)


def row_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Rows that hold something, classed by how much they hold, so that no one line becomes a good guess."""
    held = [(row, sum(t.row == row for t in scene.things)) for row in range(1, SIDE + 1)]
    return [Candidate("row", "", n, (row,), weight=ROW_WEIGHTS[n]) for row, n in held if n]


def row_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The four cells of one row."""
    row = candidate.args[0]
    things = tuple(t for t in scene.things if t.row == row)
    found = ", ".join(f"{t.cell} {t.name}" for t in things)
    name = ROWS[row - 1]
    thought = Thought(f"read row {name}", found, f"{len(things)} in row {name}", f"row {name} holds {found}")
    text = pick((f"what is in row {name}?", f"read row {name}."), rng)
    return Draft(text, "text", (_line(scene, row),), thought, marks=things)


def cell_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Every cell; "empty" is one answer among seventeen."""
    offers = []
    for row in range(1, SIDE + 1):
        for column in range(1, SIDE + 1):
            thing = scene.by_cell.get((row, column))
            offers.append(Candidate("cell", "", thing.name if thing else EMPTY, (row, column)))
    return offers


def cell_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What one cell holds."""
    row, column = candidate.args
    place = cell_name(row, column)
    thing = scene.by_cell.get((row, column))
    name = thing.name if thing else EMPTY
    thought = Thought(f"look at {place}", f"{place} {name}", f"it is {name}", f"{place} is {name}")
    text = pick((f"what is at {place}?", f"name what {place} holds."), rng)
    return Draft(text, "text", (name,), thought, marks=(thing,) if thing else ())


def count_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """How many of each object, colour or shape."""
    return [
        Candidate("count", group, scene.count(term), (term,))
        for group, terms in TERMS.items()
        for term in terms
    ]


def count_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Counting up makes the result a copy of the last number said."""
    term = candidate.args[0]
    things = scene.find(term)
    up = " ".join(map(str, range(1, len(things) + 1))) or "0"
    thought = Thought(
        f"count {short(term)}", seen(scene, [term]), up, f"{seen(scene, [term])}, so {len(things)}"
    )
    text = pick((f"how many {plural(term)} are there?", f"count the {plural(term)}."), rng)
    return Draft(text, "numeric", (str(len(things)),), thought, marks=things)


def find_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The cells of each object, colour or shape, classed by how many there are."""
    return [
        Candidate("find", group, n, (term,), weight=1.0 if n else NONE_WEIGHT)
        for group, terms in TERMS.items()
        for term in terms
        for n in [scene.count(term)]
    ]


def find_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Cells in reading order: what every longer thought is made of."""
    term = candidate.args[0]
    things = scene.find(term)
    found = seen(scene, [term])
    thought = Thought(
        f"find {short(term)}", found, f"{len(things)} in all", f"{len(things)} in all: {cells(things)}"
    )
    text = pick((f"find the {plural(term)}.", f"which cells hold {plural(term)}?"), rng)
    return Draft(text, "text", (cells(things),), thought, marks=things)


def colour_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Shapes that occur once."""
    return [
        Candidate("colour", "", scene.find(term)[0].colour, (term,))
        for term in SHAPE_TERMS
        if scene.count(term) == 1
    ]


def _attribute(
    scene: Scene, candidate: Candidate, texts: tuple[str, ...], options: tuple[str, ...], rng: Rng
) -> Draft:
    term, answer = candidate.args[0], str(candidate.answer)
    thing = scene.find(term)[0]
    thought = Thought(
        f"find {short(term)}",
        f"{thing.name} {thing.cell}",
        f"it is {answer}",
        f"{thing.cell} is a {thing.name}, so {answer}",
    )
    return Draft(pick(texts, rng), "single_choice", (answer,), thought, shuffled(options, rng), (thing,))


def colour_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The colour of the one thing of a shape."""
    name = singular(candidate.args[0])
    return _attribute(
        scene, candidate, (f"what colour is the {name}?", f"name the colour of the {name}."), COLOURS, rng
    )


def shape_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Colours that occur once."""
    return [
        Candidate("shape", "", scene.find(term)[0].shape, (term,))
        for term in COLOUR_TERMS
        if scene.count(term) == 1
    ]


def shape_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The shape of the one thing of a colour."""
    name = singular(candidate.args[0])
    return _attribute(
        scene, candidate, (f"what shape is the {name}?", f"name the shape of the {name}."), SHAPES, rng
    )


def where_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Terms that name exactly one thing."""
    return [
        Candidate("where", group, things[0].cell, (term,))
        for group, terms in TERMS.items()
        for term in terms
        if len(things := scene.find(term)) == 1
    ]


def where_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The cell of the one thing a term names."""
    term = candidate.args[0]
    thing = scene.find(term)[0]
    thought = Thought(
        f"find {short(term)}",
        f"{thing.name} {thing.cell}",
        f"it is at {thing.cell}",
        f"{thing.name} at {thing.cell}",
    )
    text = pick((f"where is the {singular(term)}?", f"which cell holds the {singular(term)}?"), rng)
    return Draft(text, "text", (thing.cell,), thought, marks=(thing,))


KINDS = (
    Kind("caption", 0.4, caption_offers, caption_ask),
    Kind("list", 0.3, list_offers, list_ask),
    Kind("row", 0.2, row_offers, row_ask),
    Kind("cell", 0.0, cell_offers, cell_ask),
    Kind("find", 0.1, find_offers, find_ask),
    Kind("count", 0.2, count_offers, count_ask),
    Kind("colour", 0.0, colour_offers, colour_ask),
    Kind("shape", 0.0, shape_offers, shape_ask),
    Kind("where", 0.2, where_offers, where_ask),
)
