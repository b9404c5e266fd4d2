"""Line charts as inline SVG. Colours come from the page's style sheet, so a chart follows the light or dark theme."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmreason.report.words import number

WIDTH, HEIGHT = 360, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
MOST_POINTS = 400  # longer series are averaged in bins: a page stays small, a line stays readable
Place = Callable[[float], float]  # a value -> its position in the drawing
SMOOTH_FROM = 30  # series of at least this many points get a smoothed line over the raw one


@dataclass(frozen=True)
class Series:
    """One line of a chart; `colour` is a class of the style sheet (c0, c1 ..., or s0 ... for stages).

    Example: `Series("loss", [(1, 2.3), (2, 2.1)], "c0")`.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    bounds: tuple[float | None, float | None] = (None, None),
    x_labels: Sequence[str] = (),
    percent: bool = False,
) -> Markup:
    """An SVG of the series, with `data-chart` JSON for the page's read-out under the pointer.

    `bounds` fixes the lower or upper end of the y axis. With `x_labels`, x are positions 0, 1, ... that
    carry these words, and the points are marked.
    """
    drawn = [Series(s.name, shorten(s.points), s.colour) for s in series if s.points]
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    low, high = _range(ys, bounds)
    x0, x1 = (min(xs), max(xs)) if xs else (0.0, 1.0)
    if x_labels:
        x0, x1 = -0.3, len(x_labels) - 0.7

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)

    def py(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / (high - low))

    parts = [_y_axis(low, high, py, percent), _x_axis(x0, x1, px, x_labels)]
    for s in drawn:
        smooth = len(s.points) >= SMOOTH_FROM and not x_labels
        path = _path([(px(x), py(y)) for x, y in s.points])
        parts.append(
            Markup('<path class="line {} {}" d="{}"/>').format(s.colour, "raw" if smooth else "", path)
        )
        if smooth:
            path = _path([(px(x), py(y)) for x, y in smoothed(s.points)])
            parts.append(Markup('<path class="line {}" d="{}"/>').format(s.colour, path))
        if x_labels or len(s.points) == 1:
            dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>')
            parts += [dot.format(s.colour, px(x), py(y)) for x, y in s.points]
    data = {
        "series": [
            {"name": s.name, "colour": s.colour, "points": [_point(p, px, py) for p in s.points]}
            for s in drawn
        ],
        "labels": list(x_labels),
        "percent": percent,
    }
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}'
        '<line class="cursor" y1="{}" y2="{}" x1="-9" x2="-9"/></svg>'
    ).format(WIDTH, HEIGHT, label, json.dumps(data), Markup("").join(parts), TOP, HEIGHT - BOTTOM)


def shorten(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: the means of neighbouring ones."""
    if len(points) <= most:
        return list(points)
    out = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        out.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return out


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential moving average over about a twentieth of the series, without the start's bias towards 0."""
    keep = 1 - 1 / max(2.0, len(points) / 20)
    average = weight = 0.0
    out = []
    for x, y in points:
        average, weight = keep * average + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, average / weight))
    return out


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`. Example: ticks(0, 1) is [0, 0.25, 0.5, 0.75, 1]."""
    span = high - low
    raw = span / (most - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.85), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(ys: Sequence[float], bounds: tuple[float | None, float | None]) -> tuple[float, float]:
    low = min(ys, default=0.0) if bounds[0] is None else bounds[0]
    high = max(ys, default=1.0) if bounds[1] is None else bounds[1]
    if high - low < 1e-12:
        pad = abs(high) * 0.1 or 1.0
        return (low if bounds[0] is not None or low == 0 else low - pad), high + pad
    pad = 0.06 * (high - low)
    return (low if bounds[0] is not None else low - pad), (high if bounds[1] is not None else high + pad)


def _y_axis(low: float, high: float, py: Place, percent: bool) -> Markup:
    out = Markup("")
    for tick in ticks(low, high):
        text = f"{100 * tick:.4g}%" if percent else number(tick)
        out += Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
            LEFT, WIDTH - RIGHT, py(tick), py(tick)
        )
        out += Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(LEFT - 6, py(tick) + 3.5, text)
    return out


def _x_axis(x0: float, x1: float, px: Place, labels: Sequence[str]) -> Markup:
    places: list[tuple[float, str]] = [(float(i), label) for i, label in enumerate(labels)]
    if not labels:
        marks = [t for t in ticks(x0, x1, 6) if t == int(t)] if x1 > x0 else [x0]
        places = [(t, number(t)) for t in marks]
    text = Markup('<text class="x" x="{:.1f}" y="{}">{}</text>')
    return Markup("").join(text.format(px(place), HEIGHT - 7, label) for place, label in places)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _point(point: tuple[float, float], px: Place, py: Place) -> list[float]:
    x, y = point
    return [round(px(x), 1), round(py(y), 1), float(f"{x:.6g}"), float(f"{y:.5g}")]
