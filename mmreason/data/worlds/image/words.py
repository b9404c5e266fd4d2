"""How the image world speaks: terms, plurals, cells, and the draft that a question kind fills in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.image.scenes import Scene, Term, Thing
from mmreason.data.worlds.rows import Thought

Item = TypeVar("Item")


@dataclass(frozen=True)
class Draft:
    """A question before its evidence becomes boxes and its difficulty is known.

    Example: `Draft("count the stars.", "numeric", ("2",), thought, things=scene.find((None, "star")))`.
    """

    text: str
    problem_type: str
    answers: tuple[str, ...]
    thought: Thought
    options: tuple[str, ...] = ()  # in the order they are shown; the thought goes through them in that order
    things: tuple[Thing, ...] = ()  # what a person would point at


@dataclass(frozen=True)
class Kind:
    """One kind of question: what a scene offers of it, and how one offer is asked.

    `weight` 0..1 is how hard the kind is beside the others in a scene of the same size.
    """

    name: str
    weight: float
    offers: Callable[[Scene, np.random.Generator], list[Candidate]]
    ask: Callable[[Scene, Candidate, np.random.Generator], Draft]


def pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    """One phrasing."""
    return texts[int(rng.integers(len(texts)))]


def shuffled(items: Sequence[Item], rng: np.random.Generator) -> tuple[Item, ...]:
    """The items in a random order."""
    return tuple(items[i] for i in rng.permutation(len(items)))


def singular(term: Term) -> str:
    """`("red", None)` -> "red thing", `(None, "star")` -> "star", `("red", "star")` -> "red star"."""
    colour, shape = term
    return " ".join(word for word in (colour, shape or "thing") if word)


def plural(term: Term) -> str:
    """`("red", "star")` -> "red stars"."""
    return singular(term) + "s"


def short(term: Term) -> str:
    """The term without filler: `("red", None)` -> "red"."""
    return " ".join(word for word in term if word)


def cells(things: Sequence[Thing]) -> str:
    """Cells in short form, or "none": "12 34"."""
    return " ".join(t.cell for t in things) or "none"


def listed(scene: Scene) -> str:
    """Everything in the scene in reading order, each with its cell: "12 red star, 34 blue circle"."""
    return ", ".join(f"{thing.cell} {thing.name}" for thing in scene.things)


def seen(scene: Scene, terms: Sequence[Term]) -> str:
    """What a caption says about some terms: "red star 12 34, blue none"."""
    return ", ".join(f"{short(term)} {cells(scene.find(term))}" for term in terms)


def counted(scene: Scene, terms: Sequence[Term]) -> str:
    """Counts by term: "red 3, blue 0"."""
    return ", ".join(f"{short(term)} {scene.count(term)}" for term in terms)
