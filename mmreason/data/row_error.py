"""What is said of a row that does not fit: where it comes from, what was got, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class RowError(ValueError):
    """A row, or a file of rows, that does not fit; names the row, what was got, what is allowed, what to do.

    `problems` are all that was found, one line each; the text is these lines.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Where:
    """Where a row comes from, for messages and media. Example: `Where("mine", "mine:3", "/data")`."""

    source: str
    name: str  # the row's id; every message about a row calls it so
    root: str

    def error(self, text: str) -> RowError:
        """The error of this row."""
        return RowError(f"data.{self.source}, row {self.name}: {text}")


def tried(part: Callable[[], T], problems: list[str]) -> T | None:
    """A part of the row, or None and its problems among `problems`: the other parts are looked at all the same."""
    try:
        return part()
    except RowError as error:
        problems.extend(error.problems)
        return None


def short(value: Any) -> str:
    """A value as messages show it, 80 characters at most."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
