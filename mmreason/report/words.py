"""How numbers are said: percent, points, durations, sizes. Unknown is an en dash, never 0."""

from __future__ import annotations

import math
from collections.abc import Mapping

NONE = "\u2013"
MINUS = "\u2212"
NBSP = "\u00a0"  # a number stays with its unit


def percent(value: float | None, digits: int = 1) -> str:
    """0.783 -> 78.3%."""
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """0.083 -> +8.3 (percentage points, with its sign)."""
    return NONE if value is None else f"{100 * value:+.1f}".replace("-", MINUS)


def interval(delta: Mapping[str, float] | None) -> str:
    """A paired difference with its 95% interval: `+8.3 (+4.9 to +11.8)`."""
    if not delta:
        return NONE
    return f"{points(delta['mean'])} ({points(delta['low'])} to {points(delta['high'])})"


def duration(seconds: float | None) -> str:
    """75 -> 1 min 15 s; 4000 -> 1 h 7 min."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f}{NBSP}s" if seconds >= 9.95 else f"{seconds:.1f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min{NBSP}{whole % 60}{NBSP}s"
    return f"{whole // 3600}{NBSP}h{NBSP}{whole % 3600 // 60}{NBSP}min"


def size(count: float | None) -> str:
    """Bytes as MB or GB (powers of ten)."""
    if not count:
        return NONE
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def count(value: float | None) -> str:
    """1234567 -> 1.23 M."""
    if value is None:
        return NONE
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g} {name}"
    return f"{value:.0f}"


def number(value: float | None) -> str:
    """A number of any scale in at most four significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    else:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", MINUS) if text.startswith("-") else text


def plural(value: int, noun: str, many: str = "") -> str:
    """1 row, 2 rows; `many` where an s is not enough."""
    return f"{value:,} {noun if value == 1 else many or noun + 's'}"


def listed(names: list[str]) -> str:
    """["a", "b", "c"] -> a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def ablation_label(name: str) -> str:
    """`video` -> video blanked; `sound_shift=1.0` -> it comes 1.0 s later; `audio_encoder=1` -> it is deaf; letters."""
    kind, _, value = name.partition("=")
    if kind == "letters":
        return "options with letters"
    if kind == "sound_shift":
        return f"sound shifted by {value}{NBSP}s"
    return f"audio encoder {value} deaf" if kind == "audio_encoder" else f"{kind} blanked"
