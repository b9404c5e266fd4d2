"""What every world shares: settings, questions, and how a question becomes a row.

A world yields `SceneItem`s (media files as bytes, questions with their truth); this file turns them into the
rows of `rows.jsonl`. Nothing here knows what a picture or a sound is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmreason.types import MediaKind

SPLITS = ("train", "test")
OPTION_STYLES = ("named", "lettered")
SPEAKERS = ("known", "unseen")  # of recordings: those that train rows have too, or others
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class WorldSettings:
    """Everything that decides a world's files, byte for byte. Stored as `world.json`.

    Example: `WorldSettings("image", 2, count=100, seed=0, split="train", kinds=("count",))`.
    """

    world: str
    version: int
    count: int  # rows (questions), not pictures
    seed: int
    split: str
    options: str = "named"
    kinds: tuple[str, ...] = ()
    difficulty: tuple[float, float] = (0.0, 1.0)
    rationale: bool = True
    recordings: str = ""  # folder of the recordings that the world is made of; "": it makes all itself
    speaker: str = "known"  # whose recordings

    @property
    def stream(self) -> str:
        """Names the scenes: unlike for worlds that would show other scenes or ask otherwise of them."""
        asked = hashlib.sha256(repr((self.kinds, self.difficulty, self.options)).encode()).hexdigest()[:4]
        return f"{self.split}-{self.seed}-{asked}"


@dataclass(frozen=True)
class Thought:
    """A gold thought in parts; an empty summary stands for the answer.

    Example: `Thought("count red circle", "red circle 12 34", "1 2", "red circle at 12 34, that is 2")`.
    """

    planning: str
    caption: str
    reasoning: str
    free: str
    summary: str = ""


@dataclass(frozen=True)
class Question:
    """One question about one scene; its options stand in the order they are shown, names only.

    Example: `Question("colour", "what colour is the star?", "single_choice", ("red",), thought, 0.2,
    options=("red", "green", "blue", "yellow"))`.
    """

    kind: str
    text: str
    problem_type: str
    answers: tuple[str, ...]  # one, or several options for multi_choice
    thought: Thought
    difficulty: float
    options: tuple[str, ...] = ()
    evidence: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Target:
    """Dense truth about one medium, for perception pretasks: a word for every bin of time and cell of space.

    `labels` index `words`; flat, time first, then rows, then columns. Word 0 says that nothing is there, -100 is
    "do not ask".

    Example: `Target(0, "image/colour", ("empty", "red", "blue"), (1, 2, 2), (0, 2, 0, 1))`: a still of 2 x 2 cells.
    """

    medium: int  # index among the scene's media
    name: str
    words: tuple[str, ...]
    grid: tuple[int, int, int]  # bins of time, rows, columns
    labels: tuple[int, ...]
    seconds: float = 0.0  # what the bins of time span; 0: a still


@dataclass(frozen=True)
class SceneItem:
    """One scene: its files, its questions, and the dense truth that its first row carries.

    Example: `SceneItem("train-0-5fe1-000012", (("image", "png", data),), questions)`.
    """

    scene: str
    media: tuple[tuple[MediaKind, str, bytes], ...]  # kind, file extension, content
    questions: tuple[Question, ...]
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class World:
    """A procedural world: its question kinds, named groups of kinds, and how to make scenes.

    `scenes(settings)` is endless; the same settings give the same scenes in the same order.
    """

    name: str
    version: int  # raised whenever the same settings would give other files
    kinds: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    scenes: Callable[[WorldSettings], Iterator[SceneItem]]
    locate: Callable[[str | None], str] | None = None  # finds the recordings it is made of, if it is


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but `key`: `generator(seed, "train", 12, "layout")`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def styled_options(question: Question, style: str) -> tuple[str, str]:
    """The hint that lists the options, and the solution in their order.

    Example: named -> `(" options: blue, red", "red")`; lettered -> `(" options: A blue, B red", "B")`.
    """
    options = question.options
    if not options:
        return "", ", ".join(question.answers)
    right = [i for i, text in enumerate(options) if text in question.answers]
    assert len(right) == len(question.answers), f"{question.text}: {question.answers} not all in {options}"
    if style == "named":
        return " options: " + ", ".join(options), ", ".join(options[i] for i in right)
    listed = ", ".join(f"{LETTERS[i]} {text}" for i, text in enumerate(options))
    return f" options: {listed}", ",".join(LETTERS[i] for i in right)


def rationale_bodies(question: Question, solution: str) -> dict[str, str]:
    """The two bodies of the think block; both end in the answer, with its letters in the lettered style."""
    t = question.thought
    named = ", ".join(o for o in question.options if o in question.answers)
    lettered = bool(named) and named != solution
    summary = t.summary or (f"{named} is {solution}" if lettered else solution)
    parts = {"planning": t.planning, "caption": t.caption, "reasoning": t.reasoning, "summary": summary}
    structured = "".join(f"<{tag}>{text}</{tag}>" for tag, text in parts.items())
    return {"structured": structured, "free": f"{t.free} is {solution}" if lettered else t.free}


def build_row(
    question: Question,
    number: int,
    item: SceneItem,
    refs: list[dict[str, str]],
    settings: WorldSettings,
) -> dict[str, Any]:
    """One line of `rows.jsonl`; `refs` are the typed media parts, shown before the question."""
    scene = item.scene
    row_id = f"{settings.world}-{scene}-{number}"
    hint, solution = styled_options(question, settings.options)
    content = [*refs, {"type": "text", "text": question.text + hint}]
    row: dict[str, Any] = {
        "id": row_id,
        "messages": [{"role": "user", "content": content}],
        "solution": solution,
        "problem_type": question.problem_type,
        "options": list(question.options),
        "evidence": [dict(e) for e in question.evidence],
        "difficulty": round(question.difficulty, 4),
        "kind": question.kind,
        "scene": scene,
        "source": settings.world,
    }
    if settings.rationale:
        row["rationale"] = rationale_bodies(question, solution)
    if number == 0 and item.targets:
        row["targets"] = [asdict(target) for target in item.targets]
    return row
