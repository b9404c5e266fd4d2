"""The image world: coloured shapes on a 4x4 grid, as PNG files, with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmreason.data.worlds.asking import Asker, Kind
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.image import compositional, primitives
from mmreason.data.worlds.image.draw import draw_png, evidence_of, lay_out
from mmreason.data.worlds.image.scenes import (
    CELLS,
    COLOURS,
    COLUMNS,
    MOST_THINGS,
    ROWS,
    SHAPES,
    SIDE,
    Scene,
    draw_split_scene,
)
from mmreason.data.worlds.image.words import listed
from mmreason.data.worlds.rows import SceneItem, Target, World

EMPTY = primitives.EMPTY
KINDS: dict[str, Kind[Scene]] = {kind.name: kind for kind in (*primitives.KINDS, *compositional.KINDS)}
GROUPS = {
    "primitive": tuple(kind.name for kind in primitives.KINDS),
    "compositional": tuple(kind.name for kind in compositional.KINDS),
}


def _scene(sizes: Sequence[int], split: str, rng: np.random.Generator) -> Scene:
    return draw_split_scene(sizes[int(rng.integers(len(sizes)))], split, rng)


def _write(scene: Scene, chosen: list[Candidate], name: str, rng: np.random.Generator) -> SceneItem:
    """Write the chosen questions and draw the picture."""
    layout = lay_out(scene, rng)
    questions = ASKER.questions(scene, chosen, listed(scene), lambda marks: evidence_of(marks, layout), rng)
    png = draw_png(scene, layout, rng)
    return SceneItem(name, (("image", "png", png),), questions, targets_of(scene))


def targets_of(scene: Scene) -> tuple[Target, ...]:
    """What each cell holds, by colour and by shape, 0 for an empty one; and how each cell is called."""
    places = [(r, c) for r in range(1, SIDE + 1) for c in range(1, SIDE + 1)]
    cells = [scene.by_cell.get(place) for place in places]
    colours = tuple(COLOURS.index(t.colour) + 1 if t else 0 for t in cells)
    shapes = tuple(SHAPES.index(t.shape) + 1 if t else 0 for t in cells)
    grid = (1, SIDE, SIDE)
    return (
        Target(0, "image/colour", (EMPTY, *COLOURS), grid, colours),
        Target(0, "image/shape", (EMPTY, *SHAPES), grid, shapes),
        Target(0, "image/row", (EMPTY, *ROWS), grid, tuple(r for r, _ in places)),
        Target(0, "image/cell", (EMPTY, *CELLS), grid, tuple(range(1, len(CELLS) + 1))),
        Target(0, "image/column", (EMPTY, *COLUMNS), grid, tuple(c for _, c in places)),
    )


ASKER = Asker("image", KINDS, MOST_THINGS, lambda scene: len(scene.things), _scene, _write)
WORLD = World("image", 5, tuple(KINDS), GROUPS, ASKER.scenes)
