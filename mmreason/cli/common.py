"""What the commands share: their common arguments, and where a report goes."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe (YAML)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="values that replace the recipe's")
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="write the result as JSON; - is standard output, JSON only"),
]


@contextlib.contextmanager
def json_only(target: str | None) -> Iterator[None]:
    """With `--json -`, what a command prints on its way goes to standard error, so that stdout holds JSON only."""
    if target != "-":
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def emit(target: str | None, value: Any) -> None:
    """Write `value` where `--json` says; nothing when it was not given."""
    if target is None:
        return
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    if target == "-":
        sys.__stdout__.write(text)  # type: ignore[union-attr]
    else:
        Path(target).write_text(text, encoding="utf-8")


def show(renderable: Any) -> None:
    """Print a rich table or text (to standard error inside `json_only('-')`)."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False)  # brackets in a message are its own
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, markup=False, width=140)
    console.print(renderable)
