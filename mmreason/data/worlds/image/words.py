"""How the image world speaks: terms, plurals, cells."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.worlds.image.scenes import Scene, Term, Thing


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
    """Cells in short form, or "none": "a2 c4"."""
    return " ".join(t.cell for t in things) or "none"


def listed(scene: Scene) -> str:
    """Everything in the scene in reading order, each with its cell: "a2 red star, c4 blue circle"."""
    return ", ".join(f"{thing.cell} {thing.name}" for thing in scene.things)


def seen(scene: Scene, terms: Sequence[Term]) -> str:
    """What a caption says about some terms: "red star a2 c4, blue none"."""
    return ", ".join(f"{short(term)} {cells(scene.find(term))}" for term in terms)


def counted(scene: Scene, terms: Sequence[Term]) -> str:
    """Counts by term: "red 3, blue 0"."""
    return ", ".join(f"{short(term)} {scene.count(term)}" for term in terms)
