"""Commands that look at something: eval, score, tool, methods, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmreason.cli.common import JsonFile, emit, json_only, show


def eval_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder or hub name")],
    data: Annotated[list[str], typer.Option("--data", metavar="ROWS.jsonl", help="rows; may be given several times")],
    json: JsonFile = None,
) -> None:
    """Accuracy per source, modality and problem type; think rate; mean length."""
    from mmreason.evaluate import table
    from mmreason.train.run import evaluate_model

    with json_only(json):
        result = evaluate_model(model, data)
        show(table({"eval": result}))
    emit(json, result)


def methods(json: JsonFile = None) -> None:
    """The catalogue: method, slot, paper, recipe."""
    from rich.table import Table

    from mmreason.catalogue import METHODS

    with json_only(json):
        table = Table("method", "slot", "paper", "recipe", "what it does")
        for name, method in METHODS.items():
            table.add_row(name, method.slot, method.paper, method.recipe or "-", method.summary)
        show(table)
    emit(json, {name: vars(method) for name, method in METHODS.items()})


def tool(name: Annotated[str | None, typer.Argument(help="which tool; lists them when not given")] = None) -> None:
    """Run one tool by hand (this version has none yet)."""
    from mmreason.plugins import load_plugins

    load_plugins(["mmreason_tools"])
    if name is not None:
        raise ValueError(f"tool: no tool {name!r}; this version has none yet")
    print("no tools in this version yet")


def bench(name: Annotated[str | None, typer.Argument(help="which benchmark")] = None, json: JsonFile = None) -> None:
    """Run a benchmark (this version has none yet)."""
    raise ValueError(f"bench: no benchmark {name or ''!r}; this version has none yet")


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("eval")(eval_)
    for function in (tool, methods, bench):
        app.command()(function)
