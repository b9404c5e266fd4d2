"""Pictures of scenes: antialiased shapes with a little jitter on a lightly varied ground, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from mmreason.data.worlds.drawing import as_pixels, ground, paint, varied
from mmreason.data.worlds.image.scenes import SIDE, Scene, Thing

PIXELS = 128
CELL = PIXELS // SIDE
SIZES = (20, 27)  # smallest and largest side of a thing, pixels
SHIFT = 3  # largest offset from the middle of the cell, pixels


def lay_out(scene: Scene, rng: np.random.Generator) -> dict[Thing, tuple[int, int, int]]:
    """Left, top and size in pixels of every thing; a thing never leaves its cell."""
    placed = {}
    for thing in scene.things:
        size = int(rng.integers(SIZES[0], SIZES[1] + 1))
        reach = min(SHIFT, (CELL - size) // 2 - 1)
        dx, dy = rng.integers(-reach, reach + 1, size=2)
        middle = (CELL - size) // 2
        left = (thing.column - 1) * CELL + middle + int(dx)
        top = (thing.row - 1) * CELL + middle + int(dy)
        placed[thing] = (left, top, size)
    return placed


def evidence_of(
    things: tuple[Thing, ...], layout: dict[Thing, tuple[int, int, int]]
) -> tuple[dict[str, Any], ...]:
    """Boxes [x0, y0, x1, y1] in PNG pixels (x1, y1 exclusive) with their names."""
    boxes = []
    for thing in things:
        left, top, size = layout[thing]
        boxes.append({"box": [left, top, left + size, top + size], "label": thing.name})
    return tuple(boxes)


def draw_png(scene: Scene, layout: dict[Thing, tuple[int, int, int]], rng: np.random.Generator) -> bytes:
    """The picture of a scene, PIXELS x PIXELS RGB, as PNG bytes."""
    canvas = ground(PIXELS, CELL, rng)
    for thing, (left, top, size) in layout.items():
        paint(canvas, thing.shape, varied(thing.colour, rng), left, top, size)
    buffer = io.BytesIO()
    Image.fromarray(as_pixels(canvas)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
