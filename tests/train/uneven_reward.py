"""A user's reward file: a number that differs from completion to completion, even of an untrained model."""

from __future__ import annotations

from typing import Any


def uneven(completions: list[str], **columns: Any) -> list[float | None]:
    """Sum of the characters' codes, folded into 0..1."""
    return [sum(map(ord, text)) % 17 / 16 for text in completions]
