"""A reward that differs between rows and costs nothing, so that a group has advantages."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any


def varied(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A number of 0 to 6 for each completion, by its text."""
    return [float(zlib.crc32(str(text).encode()) % 7) for text in completions]
