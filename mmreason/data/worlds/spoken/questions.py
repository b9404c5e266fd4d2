"""Questions of the spoken world. A thought writes down what is heard, then works on what it wrote."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.spoken.scenes import Scene

PLACES = ("first", "second", "third")
ANY = "any"  # the one answer class of kinds whose answers are as they fall: every digit is drawn as often

Rng = np.random.Generator


def said(scene: Scene) -> str:
    """Every digit in order: "7 4 9"."""
    return " ".join(map(str, scene.digits))


def _thought(scene: Scene, plan: str, step: str) -> Thought:
    heard = said(scene)
    return Thought(plan, heard, step, f"{heard}, {step}")


def _all(scene: Scene) -> tuple[int, ...]:
    return tuple(range(len(scene.takes)))


def digit_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """What the only recording says."""
    return [Candidate("digit", "", ANY, ())] if len(scene.takes) == 1 else []


def digit_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """One recording, one digit."""
    text = pick(("which digit is this?", "what is said?"), rng)
    answer = said(scene)
    return Draft(text, "numeric", (answer,), _thought(scene, "listen", f"it is {answer}"), marks=(0,))


def list_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """All digits of several recordings."""
    return [Candidate("list", "", ANY, ())] if len(scene.takes) > 1 else []


def list_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What each thought begins with."""
    total = f"{len(scene.takes)} in all"
    text = pick(("list the digits.", "which digits are said?"), rng)
    thought = Thought("listen in order", total, total, total, summary=total)
    return Draft(text, "text", (said(scene),), thought, marks=_all(scene))


def place_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """What is said at a place."""
    if len(scene.takes) == 1:
        return []
    return [Candidate("place", PLACES[i], ANY, (i,)) for i in _all(scene)]


def place_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The digit at one place."""
    (i,) = candidate.args
    answer = str(scene.digits[i])
    text = pick((f"what is the {PLACES[i]} digit?", f"name the {PLACES[i]} digit."), rng)
    thought = _thought(scene, f"find {PLACES[i]}", f"{PLACES[i]} is {answer}")
    return Draft(text, "numeric", (answer,), thought, marks=(i,))


def order_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Digits that differ, and which of them is said first, or last: one of the two, or sums would be seldom asked."""
    if len(scene.takes) == 1 or len(set(scene.digits)) < len(scene.digits):
        return []
    which = pick(("first", "last"), rng)
    return [Candidate("order", "", which, (which,))]


def order_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of the digits comes first, or last; the options in any order."""
    (which,) = candidate.args
    place = 0 if which == "first" else len(scene.takes) - 1
    options = shuffled(tuple(map(str, scene.digits)), rng)
    answer = str(scene.digits[place])
    text = pick((f"which of these is said {which}?", f"which of these comes {which}?"), rng)
    thought = _thought(scene, f"find {which}", f"{which} is {answer}")
    return Draft(text, "single_choice", (answer,), thought, options, marks=(place,))


def largest_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The largest digit of several; answers come as often as each other, those below 2 or 3 hardly fall at all."""
    return [Candidate("largest", "", max(scene.digits), ())] if len(scene.takes) > 1 else []


def largest_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The step writes the largest digit so far, recording by recording."""
    answer = str(max(scene.digits))
    so_far = " ".join(map(str, accumulate(scene.digits, max)))
    text = pick(("what is the largest digit?", "which digit is the largest?"), rng)
    marks = tuple(i for i in _all(scene) if str(scene.digits[i]) == answer)
    return Draft(text, "numeric", (answer,), _thought(scene, "find the largest", so_far), marks=marks)


def sum_offers(kind: str, takes: int, scene: Scene) -> list[Candidate]:
    """The sum of so many recordings. Its answers are as they fall: of two, 9 is the commonest, one in ten."""
    return [Candidate(kind, "", ANY, ())] if len(scene.takes) == takes else []


def sum_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """One addition after the other."""
    totals = list(accumulate(scene.digits))
    steps = [
        f"{total} + {digit} = {total + digit}" for total, digit in zip(totals, scene.digits[1:], strict=False)
    ]
    text = pick(("add the digits.", "what is the sum of the digits?"), rng)
    thought = _thought(scene, "add", ", ".join(steps))
    return Draft(text, "numeric", (str(totals[-1]),), thought, marks=_all(scene))


PRIMITIVES: tuple[Kind[Scene], ...] = (
    Kind("digit", 0.0, digit_offers, digit_ask),
    Kind("list", 0.2, list_offers, list_ask),
    Kind("place", 0.3, place_offers, place_ask),
)
COMPOSITIONAL: tuple[Kind[Scene], ...] = (
    Kind("order", 0.5, order_offers, order_ask),
    Kind("largest", 0.7, largest_offers, largest_ask),
    Kind("sum_two", 0.9, lambda scene, rng: sum_offers("sum_two", 2, scene), sum_ask),
    Kind("sum_three", 1.0, lambda scene, rng: sum_offers("sum_three", 3, scene), sum_ask),
)
