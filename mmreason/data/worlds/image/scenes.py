"""Scenes of the image world: 1..8 things on a 4x4 grid, and which split a scene belongs to."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow")
SIDE = 4
ROWS, COLUMNS = "abcd", "1234"  # how rows and columns are called: a cell is "b3"
MOST_THINGS = 8
TEST_SHARE = 5  # one scene in five belongs to the test split

Term = tuple[str | None, str | None]  # colour, shape; None is "any"
OBJECT_TERMS: tuple[Term, ...] = tuple((c, s) for c in COLOURS for s in SHAPES)
COLOUR_TERMS: tuple[Term, ...] = tuple((c, None) for c in COLOURS)
SHAPE_TERMS: tuple[Term, ...] = tuple((None, s) for s in SHAPES)
TERMS: dict[str, tuple[Term, ...]] = {"object": OBJECT_TERMS, "colour": COLOUR_TERMS, "shape": SHAPE_TERMS}


def cell_name(row: int, column: int) -> str:
    """Row and column, counted from 1 -> "b3"."""
    return f"{ROWS[row - 1]}{COLUMNS[column - 1]}"


CELLS = tuple(cell_name(row, column) for row in range(1, SIDE + 1) for column in range(1, SIDE + 1))


@dataclass(frozen=True, order=True)
class Thing:
    """One thing in its cell; rows and columns count from 1. Example: `Thing(2, 3, "red", "star")`."""

    row: int
    column: int
    colour: str
    shape: str

    @property
    def cell(self) -> str:
        """The cell's name, row then column: "b3"."""
        return cell_name(self.row, self.column)

    @property
    def name(self) -> str:
        """Colour and shape: "red star"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order, one to a cell. Example: `Scene((Thing(1, 2, "red", "star"),))`."""

    things: tuple[Thing, ...]

    @cached_property
    def by_term(self) -> dict[Term, tuple[Thing, ...]]:
        """Every term that matches something -> its things in reading order."""
        found: dict[Term, list[Thing]] = defaultdict(list)
        for thing in self.things:
            for term in ((thing.colour, thing.shape), (thing.colour, None), (None, thing.shape)):
                found[term].append(thing)
        return {term: tuple(things) for term, things in found.items()}

    @cached_property
    def by_cell(self) -> dict[tuple[int, int], Thing]:
        """(row, column) -> thing."""
        return {(t.row, t.column): t for t in self.things}

    def find(self, term: Term) -> tuple[Thing, ...]:
        """The things a term names."""
        return self.by_term.get(term, ())

    def count(self, term: Term) -> int:
        """How many things a term names."""
        return len(self.find(term))


def split_of(scene: Scene) -> str:
    """The one split that may show this scene, decided by its content: the splits cannot share a scene."""
    content = ";".join(f"{t.cell} {t.name}" for t in sorted(scene.things))
    return "test" if hashlib.sha256(content.encode()).digest()[0] % TEST_SHARE == 0 else "train"


def draw_scene(n: int, rng: np.random.Generator) -> Scene:
    """n things in distinct cells.

    Colours and shapes follow uneven shares drawn per scene, so that high counts, ties and things that stand
    alone all occur; the shares treat all colours and all shapes alike.
    """
    cells = rng.choice(SIDE * SIDE, size=n, replace=False)
    colours = rng.choice(len(COLOURS), size=n, p=rng.dirichlet([0.8] * len(COLOURS)))
    shapes = rng.choice(len(SHAPES), size=n, p=rng.dirichlet([0.8] * len(SHAPES)))
    things = [
        Thing(int(cell) // SIDE + 1, int(cell) % SIDE + 1, COLOURS[c], SHAPES[s])
        for cell, c, s in zip(cells, colours, shapes, strict=True)
    ]
    return Scene(tuple(sorted(things)))


def draw_split_scene(n: int, split: str, rng: np.random.Generator) -> Scene:
    """A scene of n things that belongs to `split`, by rejection."""
    while True:
        scene = draw_scene(n, rng)
        if split_of(scene) == split:
            return scene
