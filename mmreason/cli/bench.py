"""`mmreason bench`: run a benchmark and show what it measured."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmreason.cli.common import JsonFile, emit, json_only, show


def bench(
    name: Annotated[
        str | None, typer.Argument(help="step, rollout, sft or memory; lists them when not given")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="times that each side is measured, in turns")] = 3,
    image_tokens: Annotated[
        int | None, typer.Option(min=1, help="of each prompt's picture; a square")
    ] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="of each completion")] = None,
    num_generations: Annotated[int | None, typer.Option(min=2, help="completions of each prompt")] = None,
    json: JsonFile = None,
) -> None:
    """A prompt's work done once against done for every completion, in one run, on a random model of 4 layers."""
    from mmreason.bench import BENCHES, Shape

    if name is None:
        with json_only(json):
            print("\n".join(BENCHES))
        emit(json, list(BENCHES))
        return
    if name not in BENCHES:
        raise ValueError(f"no benchmark {name!r}; there are {sorted(BENCHES)}")
    given = {"image_tokens": image_tokens, "new_tokens": new_tokens, "group": num_generations}
    with json_only(json):
        result = BENCHES[name](Shape(**{key: value for key, value in given.items() if value}), rounds)
        show(_table(result))
    emit(json, result)


def _table(result: dict[str, Any]) -> Any:
    """Every number of the result but its shape and environment, nested names joined with a dot."""
    from rich.table import Table

    table = Table("measure", "value")
    for key, value in _flat({k: v for k, v in result.items() if k not in ("shape", "environment")}):
        table.add_row(key, f"{value:,.3f}" if isinstance(value, float) else str(value))
    return table


def _flat(tree: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in tree.items():
        out += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [(before + key, value)]
    return out


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)
