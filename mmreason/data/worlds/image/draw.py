"""Pictures of scenes: antialiased shapes with a little jitter on a lightly varied ground, as PNG bytes."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmreason.data.worlds.image.scenes import SIDE, Scene, Thing

PIXELS = 128
CELL = PIXELS // SIDE
SIZES = (20, 27)  # smallest and largest side of a thing, pixels
SHIFT = 3  # largest offset from the middle of the cell, pixels
SUPERSAMPLE = 8  # each cached shape is drawn this much larger, then averaged down
RGB = {"red": (214, 48, 49), "green": (39, 160, 72), "blue": (44, 98, 217), "yellow": (240, 196, 25)}


def _polygon(shape: str, size: float) -> list[tuple[float, float]]:
    """Corners of a triangle or a five-pointed star inside a square of side `size`."""
    if shape == "triangle":
        return [(size / 2, 0.0), (size, size), (0.0, size)]
    points = []
    for i in range(10):
        radius = size * (0.55 if i % 2 == 0 else 0.235)
        angle = math.pi * (i / 5 - 0.5)
        points.append((size / 2 + radius * math.cos(angle), size * 0.54 + radius * math.sin(angle)))
    return points


@lru_cache(maxsize=64)
def shape_masks(shape: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the whole shape and of its inside without the edge, float32 [size, size, 1] in 0..1."""
    big = size * SUPERSAMPLE
    masks = []
    for inset in (0.0, 0.06):
        image = Image.new("L", (big, big))
        pen = ImageDraw.Draw(image)
        pad = inset * big
        if shape == "circle":
            pen.ellipse((pad, pad, big - 1 - pad, big - 1 - pad), fill=255)
        elif shape == "square":
            margin = 0.05 * big + pad
            pen.rectangle((margin, margin, big - 1 - margin, big - 1 - margin), fill=255)
        else:
            corners = _polygon(shape, big)
            middle = (sum(x for x, _ in corners) / len(corners), sum(y for _, y in corners) / len(corners))
            shrink = 1 - inset * 3
            pen.polygon(
                [
                    (middle[0] + (x - middle[0]) * shrink, middle[1] + (y - middle[1]) * shrink)
                    for x, y in corners
                ],
                fill=255,
            )
        blocks = np.asarray(image, dtype=np.float32).reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
        masks.append((blocks.mean(axis=(1, 3)) / 255.0)[:, :, None])
    return masks[0], masks[1]


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


def _ground(rng: np.random.Generator) -> np.ndarray:
    """A light, softly graded ground with faint cell lines, float32 [PIXELS, PIXELS, 3]."""
    tint = rng.uniform(226, 244, size=3).astype(np.float32)
    slope_x, slope_y = rng.uniform(-9, 9, size=2)
    ramp = np.linspace(-1, 1, PIXELS, dtype=np.float32)
    shade = np.float32(slope_x) * ramp[None, :] + np.float32(slope_y) * ramp[:, None]
    lines = np.arange(CELL, PIXELS, CELL)
    shade[lines, :] -= 14
    shade[:, lines] -= 14
    return tint + np.round(shade)[:, :, None]


def draw_png(scene: Scene, layout: dict[Thing, tuple[int, int, int]], rng: np.random.Generator) -> bytes:
    """The picture of a scene, PIXELS x PIXELS RGB, as PNG bytes."""
    canvas = _ground(rng)
    for thing, (left, top, size) in layout.items():
        whole, inside = shape_masks(thing.shape, size)
        fill = np.asarray(RGB[thing.colour], dtype=np.float32) + rng.uniform(-14, 14, size=3).astype(
            np.float32
        )
        area = canvas[top : top + size, left : left + size]
        area += whole * (fill * np.float32(0.62) - area)
        area += inside * (fill - area)
    pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
