"""What the worlds with pictures share: coloured shapes with soft edges, and the ground they lie on."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

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


def varied(colour: str, rng: np.random.Generator) -> np.ndarray:
    """One thing's own shade of a colour, float32 [3]."""
    return np.asarray(RGB[colour], dtype=np.float32) + rng.uniform(-14, 14, size=3).astype(np.float32)


def paint(canvas: np.ndarray, shape: str, fill: np.ndarray, left: int, top: int, size: int) -> None:
    """A shape with a darker edge, put onto `canvas` (float32 [H, W, 3]) in place; it must lie inside."""
    whole, inside = shape_masks(shape, size)
    area = canvas[top : top + size, left : left + size]
    area += whole * (fill * np.float32(0.62) - area)
    area += inside * (fill - area)


def ground(pixels: int, cell: int, rng: np.random.Generator) -> np.ndarray:
    """A light, softly graded ground with faint cell lines, float32 [pixels, pixels, 3]."""
    tint = rng.uniform(226, 244, size=3).astype(np.float32)
    slope_x, slope_y = rng.uniform(-9, 9, size=2)
    ramp = np.linspace(-1, 1, pixels, dtype=np.float32)
    shade = np.float32(slope_x) * ramp[None, :] + np.float32(slope_y) * ramp[:, None]
    lines = np.arange(cell, pixels, cell)
    shade[lines, :] -= 14
    shade[:, lines] -= 14
    return tint + np.round(shade)[:, :, None]


def as_pixels(canvas: np.ndarray) -> np.ndarray:
    """Canvas -> uint8, rounded and clipped."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
