"""A user's reward file: a number that only the whole group can tell."""

from __future__ import annotations

from typing import Any


def order(completions: list[str], **columns: Any) -> list[float | None]:
    """Each completion's place among the group's, in the order of the alphabet, as a share of all."""
    return [sorted(completions).index(text) / len(completions) for text in completions]
