"""Frames of a clip: 64x64 pixels, 8 a second, 16-pixel cells; evidence boxes and dense truth that agree with them.

In every frame of a moment (half a second) a moving thing lies behind the middle of the cell it came into, so that any
frame shows which way it goes, whichever frames are sampled. A flash is a bright glow that fills the thing's cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmreason.data.worlds.drawing import as_pixels, ground, paint, varied
from mmreason.data.worlds.image.scenes import CELLS, COLOURS, SHAPES, SIDE
from mmreason.data.worlds.rows import Target
from mmreason.data.worlds.video.physics import MOMENT, MOMENTS, SECONDS, STEPS, WAYS, Clip, Event, Look, Track

PIXELS = 64
CELL = PIXELS // SIDE
FPS = 8
PER_MOMENT = round(FPS * MOMENT)
SIZES = (11, 12)  # smallest and largest side of a thing, pixels
SHIFT = 1  # largest offset of a resting thing from the middle of its cell, pixels
TRAVEL = (
    -4,
    -4,
    -4,
    -3,
)  # pixels from the middle of the cell in the frames of one moment, while a thing moves
GLOW = np.asarray((250, 110, 250), dtype=np.float32)
EMPTY = "empty"
HAPPENS = ("moved", "appeared", "vanished", "turned", "flashed", "hit")

Rng = np.random.Generator


@dataclass(frozen=True)
class Placed:
    """How one thing is drawn: its side in pixels, its offset from the middle of a cell, its shade of each colour."""

    size: int
    dx: int
    dy: int
    fills: dict[str, np.ndarray]


def lay_out(clip: Clip, rng: Rng) -> tuple[Placed, ...]:
    """Sizes, offsets and shades, beside `clip.actors`."""
    placed = []
    for _ in clip.actors:
        dx, dy = (int(d) for d in rng.integers(-SHIFT, SHIFT + 1, size=2))
        size = int(rng.integers(SIZES[0], SIZES[1] + 1))
        placed.append(Placed(size, dx, dy, {colour: varied(colour, rng) for colour in COLOURS}))
    return tuple(placed)


def corner(placed: Placed, track: Track, moment: int, part: int) -> tuple[int, int]:
    """Left and top pixel of a thing in frame `part` (0..3) of a moment (1..8) at which it is there."""
    look = track[moment - 1]
    assert look is not None
    rows, columns = STEPS.get(look.way, (0, 0))
    middle = (CELL - placed.size) // 2
    left = (look.column - 1) * CELL + middle + placed.dx + columns * TRAVEL[part]
    top = (look.row - 1) * CELL + middle + placed.dy + rows * TRAVEL[part]
    return min(max(left, 0), PIXELS - placed.size), min(max(top, 0), PIXELS - placed.size)


def _cell_of(canvas: np.ndarray, look: Look) -> np.ndarray:
    """The pixels of the cell a thing is in."""
    top, left = (look.row - 1) * CELL, (look.column - 1) * CELL
    return canvas[top : top + CELL, left : left + CELL]


def draw_frames(clip: Clip, layout: Sequence[Placed], rng: Rng) -> np.ndarray:
    """All frames, uint8 [32, 64, 64, 3]."""
    base = ground(PIXELS, CELL, rng)
    drawn: dict[tuple[Any, ...], np.ndarray] = {}
    frames = []
    for number in range(MOMENTS * PER_MOMENT):
        moment, part = number // PER_MOMENT + 1, number % PER_MOMENT
        seen = [
            (i, look, corner(layout[i], track, moment, part))
            for i, track in enumerate(clip.tracks)
            if (look := track[moment - 1])
        ]
        key = tuple((i, look.colour, look.flash, at) for i, look, at in seen)
        if key not in drawn:
            canvas = base.copy()
            for _, look, _ in seen:
                if look.flash:
                    _cell_of(canvas, look)[:] = GLOW
            for i, look, (left, top) in seen:
                shape, size = clip.actors[i].shape, layout[i].size
                paint(canvas, shape, layout[i].fills[look.colour], left, top, size)
            drawn[key] = as_pixels(canvas)
        frames.append(drawn[key])
    return np.stack(frames)


def seconds_of(moment: int) -> float:
    """When a moment begins: 1 -> 0.0, 3 -> 1.0."""
    return (moment - 1) * MOMENT


def evidence_of(events: Sequence[Event], clip: Clip, layout: Sequence[Placed]) -> tuple[dict[str, Any], ...]:
    """A box [x0, y0, x1, y1] (pixels, x1 and y1 exclusive) with its `t` for every event, and the span of a move.

    What vanished is shown where it was last seen.
    """
    evidence: list[dict[str, Any]] = []
    for event in events:
        i = next(i for i, actor in enumerate(clip.actors) if actor.name == event.name)
        moment = event.moment - 1 if event.verb == "vanished" else event.moment
        left, top = corner(layout[i], clip.tracks[i], moment, 0)
        size = layout[i].size
        box = [left, top, left + size, top + size]
        evidence.append({"box": box, "t": seconds_of(moment), "label": event.phrase})
        if event.verb == "moved":
            span = [seconds_of(event.moment), seconds_of(event.until + 1)]
            evidence.append({"span": span, "label": event.phrase})
    return tuple(evidence)


def targets_of(clip: Clip) -> tuple[Target, ...]:
    """What each cell holds at each moment: colour, shape, the way it came in, whether it flashes, and what happens.

    Something vanishes in the cell where it was last seen. Every cell knows its name and the number of its moment.
    """
    bins = (MOMENTS, SIDE, SIDE)
    labels = {name: np.zeros(bins, dtype=int) for name in ("colour", "shape", "motion", "flash", "event")}
    labels["moment"] = np.broadcast_to(np.arange(1, MOMENTS + 1)[:, None, None], bins)
    labels["cell"] = np.broadcast_to(np.arange(1, len(CELLS) + 1).reshape(1, SIDE, SIDE), bins)
    for actor, track in zip(clip.actors, clip.tracks, strict=True):
        for moment, look in enumerate(track):
            if look:
                at = (moment, look.row - 1, look.column - 1)
                labels["colour"][at] = COLOURS.index(look.colour) + 1
                labels["shape"][at] = SHAPES.index(actor.shape) + 1
                labels["motion"][at] = WAYS.index(look.way) + 1 if look.way else 0
                labels["flash"][at] = int(look.flash)
    for event in clip.events:
        track = clip.track(event.name)
        look = track[event.moment - (2 if event.verb == "vanished" else 1)]
        assert look is not None
        labels["event"][event.moment - 1, look.row - 1, look.column - 1] = HAPPENS.index(event.verb) + 1
    words = {
        "colour": COLOURS,
        "shape": SHAPES,
        "motion": WAYS,
        "flash": ("flashed",),
        "event": HAPPENS,
        "moment": tuple(map(str, range(1, MOMENTS + 1))),
        "cell": CELLS,
    }
    return tuple(
        Target(0, f"video/{name}", (EMPTY, *words[name]), bins, tuple(int(v) for v in grid.ravel()), SECONDS)
        for name, grid in labels.items()
    )
