"""The image world: coloured shapes on a 4x4 grid, as PNG files, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mmreason.data.worlds.balance import Balance, Candidate, pilot_keys
from mmreason.data.worlds.image import compositional, primitives
from mmreason.data.worlds.image.draw import draw_png, evidence_of, lay_out
from mmreason.data.worlds.image.scenes import COLOURS, MOST_THINGS, SHAPES, SIDE, Scene, draw_split_scene
from mmreason.data.worlds.image.words import Kind, listed
from mmreason.data.worlds.rows import Question, SceneItem, Target, Thought, World, WorldSettings, generator

EMPTY = primitives.EMPTY
KINDS: dict[str, Kind] = {kind.name: kind for kind in (*primitives.KINDS, *compositional.KINDS)}
GROUPS = {
    "primitive": tuple(kind.name for kind in primitives.KINDS),
    "compositional": tuple(kind.name for kind in compositional.KINDS),
}
QUESTIONS_PER_SCENE = 4
THINGS_SHARE = 0.65  # of the difficulty; the kind of question gives the rest
PILOT_SCENES = 400
DRY_SCENES = 5000  # scenes in a row without a question before the settings are called impossible


def difficulty_of(n: int, kind: Kind) -> float:
    """0 easy .. 1 hard: mostly how many things there are, partly the kind of question."""
    return THINGS_SHARE * (n - 1) / (MOST_THINGS - 1) + (1 - THINGS_SHARE) * kind.weight


def open_kinds(settings: WorldSettings) -> dict[int, tuple[str, ...]]:
    """Number of things -> kinds whose difficulty is in the range; sizes without a kind are left out."""
    low, high = settings.difficulty
    fits = {
        n: tuple(k for k in settings.kinds if low <= difficulty_of(n, KINDS[k]) <= high)
        for n in range(1, MOST_THINGS + 1)
    }
    return {n: kinds for n, kinds in fits.items() if kinds}


def _scene(sizes: Sequence[int], split: str, rng: np.random.Generator) -> Scene:
    return draw_split_scene(sizes[int(rng.integers(len(sizes)))], split, rng)


def _offers(scene: Scene, rng: np.random.Generator, kind: str) -> list[Candidate]:
    return KINDS[kind].offers(scene, rng)


def _pilot(open_at: Mapping[int, Sequence[str]]) -> Iterator[list[Candidate]]:
    """What pilot scenes offer; the same for every seed and split, so that all ask for the same answers."""
    for i in range(PILOT_SCENES):
        rng = generator("image", "pilot", i)
        scene = _scene(sorted(open_at), "train", rng)
        yield [c for kind in open_at[len(scene.things)] for c in _offers(scene, rng, kind)]


def look_first(thought: Thought, scene: Scene) -> Thought:
    """The thought as a reader writes it: first all that is seen, then what of it matters, then the conclusion.

    What is written down once can be looked up by its words; a small model learns that far sooner than to search
    the picture itself.
    """
    return replace(thought, caption=listed(scene), reasoning=f"{thought.caption}, {thought.reasoning}")


def _ask(
    scene: Scene, chosen: list[Candidate], index: int, settings: WorldSettings, rng: np.random.Generator
) -> SceneItem:
    """Write the chosen questions and draw the picture."""
    layout = lay_out(scene, rng)
    questions = []
    for candidate in chosen:
        kind = KINDS[candidate.kind]
        d = kind.ask(scene, candidate, rng)
        difficulty = difficulty_of(len(scene.things), kind)
        evidence = evidence_of(d.things, layout)
        thought = look_first(d.thought, scene)
        questions.append(
            Question(
                kind.name,
                d.text,
                d.problem_type,
                d.answers,
                thought,
                difficulty,
                d.options,
                evidence,
            )
        )
    png = draw_png(scene, layout, rng)
    name = f"{settings.stream}-{index:06d}"
    return SceneItem(name, (("image", "png", png),), tuple(questions), targets_of(scene))


def targets_of(scene: Scene) -> tuple[Target, ...]:
    """What each cell holds, by colour and by shape; 0 is an empty cell."""
    cells = [scene.by_cell.get((r, c)) for r in range(1, SIDE + 1) for c in range(1, SIDE + 1)]
    colours = tuple(COLOURS.index(t.colour) + 1 if t else 0 for t in cells)
    shapes = tuple(SHAPES.index(t.shape) + 1 if t else 0 for t in cells)
    grid = (1, SIDE, SIDE)
    return (
        Target(0, "image/colour", (EMPTY, *COLOURS), grid, colours),
        Target(0, "image/shape", (EMPTY, *SHAPES), grid, shapes),
    )


def scenes(settings: WorldSettings) -> Iterator[SceneItem]:
    """Endless scenes with up to four questions each.

    Raises ValueError when no scene of the difficulty asked for can carry the kinds asked for.
    """
    open_at = open_kinds(settings)
    impossible = (
        f"kinds {list(settings.kinds)} at difficulty {settings.difficulty} give no question; widen the range"
    )
    if not open_at:
        raise ValueError(f"world image: {impossible}")
    balance = Balance(pilot_keys(_pilot(open_at)))
    index = dry = 0
    while dry < DRY_SCENES:
        rng = generator("image", settings.seed, settings.split, index)
        scene = _scene(sorted(open_at), settings.split, rng)
        kinds = open_at[len(scene.things)]
        chosen = balance.choose(kinds, partial(_offers, scene, rng), QUESTIONS_PER_SCENE, rng)
        if chosen:
            yield _ask(scene, chosen, index, settings, rng)
        dry = 0 if chosen else dry + 1
        index += 1
    raise ValueError(f"world image: {impossible}")


WORLD = World("image", 4, tuple(KINDS), GROUPS, scenes)
