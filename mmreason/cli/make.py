"""Commands that make files: data make, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmreason.cli.common import JsonFile, emit, json_only

data = typer.Typer(help="Procedural multimodal data with ground truth.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    """Procedural multimodal data with ground truth."""


@data.command("make")
def make(
    world: Annotated[str, typer.Argument(help="which world, e.g. image")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    count: Annotated[int, typer.Option(min=1, help="questions")] = 1000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files")] = 0,
    split: Annotated[str, typer.Option(help="train or test: their scenes are disjoint")] = "train",
    options: Annotated[str, typer.Option(help="named or lettered")] = "named",
    kinds: Annotated[list[str] | None, typer.Option(help="question kinds; all when not given")] = None,
    difficulty: Annotated[tuple[float, float], typer.Option(help="lowest and highest, 0 to 1")] = (0.0, 1.0),
    rationale: Annotated[bool, typer.Option(help="write the gold rationale into the rows")] = True,
    recordings: Annotated[
        str | None, typer.Option(help="folder of spoken digits, for world spoken; else $MMREASON_DATA")
    ] = None,
    speaker: Annotated[str, typer.Option(help="of recordings: known or unseen")] = "known",
    json: JsonFile = None,
) -> None:
    """Make rows and media of a procedural world."""
    from mmreason.data.worlds import make_world, read_settings, world_settings

    settings: dict[str, Any] = {
        "count": count,
        "seed": seed,
        "split": split,
        "options": options,
        "kinds": kinds or (),
        "difficulty": difficulty,
        "rationale": rationale,
        "recordings": recordings,
        "speaker": speaker,
    }
    if read_settings(out) not in (None, world_settings(world, **settings)):
        raise ValueError(
            f"data make: {str(out)!r} holds a world made with other settings (see its world.json); give another "
            "--out, or remove the folder first"
        )
    rows = make_world(world, out, **settings)
    if json != "-":
        print(f"{count} rows in {rows}")
    emit(json, {"rows": str(rows), "count": count, "world": world, "seed": seed, "split": split})


def report(run_dir: Annotated[Path, typer.Argument(help="a run directory")], json: JsonFile = None) -> None:
    """Rebuild report.html of a run directory."""
    if not run_dir.is_dir():
        raise ValueError(f"report: no run directory {str(run_dir)!r}")
    from mmreason.report import write_report

    page = write_report(run_dir)
    if json != "-":
        print(f"report: {page}")
    emit(json, {"report": str(page)})


def export(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint-N, stages/NAME or model folder")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    json: JsonFile = None,
) -> None:
    """Write a checkpoint as a plain-transformers model, adapters merged."""
    if not checkpoint.is_dir():
        raise ValueError(f"export: no checkpoint folder {str(checkpoint)!r}")
    from mmreason.cli.export import export as write

    with json_only(json):
        folder = write(checkpoint, out)
        print(f"model: {folder}")
    emit(json, {"model": str(folder)})


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(data, name="data")
    for function in (report, export):
        app.command()(function)
