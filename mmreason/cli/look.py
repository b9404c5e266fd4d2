"""Commands that look at something: eval, score, methods, tool."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmreason.cli.common import JsonFile, emit, json_only, show

if TYPE_CHECKING:
    from mmreason.types import MediaKind


def eval_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder or hub name")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="ROWS", help="rows; may be given several times")
    ],
    limit: Annotated[int | None, typer.Option(min=1, help="rows, evenly over the sources")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="rows generated at once")] = 64,
    max_completion_length: Annotated[int, typer.Option(min=1, help="new tokens at most")] = 256,
    system_prompt: Annotated[str | None, typer.Option(help="the system turn")] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="ask again, without a sense: image, video, audio (blanked), sound_shift=SECONDS (av), "
            "audio_encoder=NUMBER; or with letters for the options: letters; may be given several times",
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            metavar="FILE",
            help="write every question with its answer and verdict there, a JSON object a line, as a run's "
            "eval/STAGE.jsonl",
        ),
    ] = None,
    json: JsonFile = None,
) -> None:
    """Accuracy per source, modality and problem type; think rate; mean length; what each sense is worth."""
    from mmreason.api import evaluate_model
    from mmreason.evaluate import ablation_table, table

    with json_only(json):
        result = evaluate_model(
            model,
            data,
            limit=limit,
            batch_size=batch_size,
            max_completion_length=max_completion_length,
            system_prompt=system_prompt,
            ablate=ablate or (),
            rows=rows,
        )
        show(table({"eval": result}))
        if result["ablations"]:
            show(ablation_table(result["ablations"]))
    emit(json, result)


def score(
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS.jsonl", help="completion, solution, problem_type ...")
    ],
    reward: Annotated[
        list[str], typer.Option("--reward", metavar="NAME", help="a reward's name or FILE.py:FUNCTION")
    ],
    args: Annotated[str | None, typer.Option(metavar="JSON", help="the reward's arguments")] = None,
    json: JsonFile = None,
) -> None:
    """Rewards for stored completions."""
    from rich.table import Table

    from mmreason.evaluate import score as score_rows

    stored = read_jsonl(rows)
    arguments = None if args is None else _arguments(args)
    with json_only(json):
        results = {name: score_rows(stored, name, arguments) for name in reward}
        table = Table("reward", "completions", "mean", "accuracy")
        for name, result in results.items():
            table.add_row(name, str(result["n"]), _number(result["mean"]), _number(result["accuracy"]))
        show(table)
        for problem in (p for result in results.values() for p in result["problems"]):
            print(problem)
    emit(json, results)


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a model folder or hub name")],
    question: Annotated[str, typer.Argument(help="what to ask")],
    image: Annotated[list[Path] | None, typer.Option(help="a picture; may be given several times")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="a video")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="a recording")] = None,
    max_completion_length: Annotated[int, typer.Option(min=1, help="new tokens at most")] = 256,
    system_prompt: Annotated[str | None, typer.Option(help="the system turn")] = None,
    json: JsonFile = None,
) -> None:
    """Ask a model one question about media; a video is heard too when --audio names the same file."""
    given: dict[MediaKind, list[Path]] = {"image": image or [], "video": video or [], "audio": audio or []}
    with json_only(json):
        from mmreason.cli.chat import answer

        media = [(kind, path) for kind, paths in given.items() for path in paths]
        text = answer(
            model, question, media, max_completion_length=max_completion_length, system_prompt=system_prompt
        )
        print(text)
    emit(json, {"model": model, "question": question, "completion": text})


def methods(
    models: Annotated[
        bool, typer.Option("--models", help="which models can share prompts in rollouts and in training")
    ] = False,
    json: JsonFile = None,
) -> None:
    """The catalogue: method, slots, paper, recipe key; with --models, what each kind of model can do."""
    from rich.table import Table

    if models:
        _models(json)
        return

    from mmreason.catalogue import METHODS

    with json_only(json):
        table = Table("method", "slots", "paper", "key", "recipe", "what it does")
        for name, method in METHODS.items():
            paper = f"arXiv {method.paper}" if method.paper else "-"
            table.add_row(name, ", ".join(method.slots), paper, method.key, method.recipe, method.summary)
        show(table)
    emit(json, {name: asdict(method) for name, method in METHODS.items()})


def _models(json: JsonFile) -> None:
    """The capability table: each family is built without weights and asked."""
    from rich.table import Table

    from mmreason.train.capability import capabilities

    with json_only(json):
        found = capabilities()
        table = Table(
            "model_type", "as", "positions", "layers", "rollouts share prompts", "training shares prompts"
        )
        for line in found:
            layers = ", ".join(kind.removesuffix("_attention") for kind in line.layers)
            shares = (line.rollout or "yes", line.training or "yes")
            table.add_row(line.name, line.kind, line.positions, layers, *shares)
        show(table)
    emit(json, [asdict(line) for line in found])


def tool(
    name: Annotated[str | None, typer.Argument(help="which tool; lists them when not given")] = None,
    json: JsonFile = None,
) -> None:
    """Run one tool by hand (this version has none yet)."""
    _none_yet("tool", name, json)


def _none_yet(kind: str, name: str | None, json: str | None) -> None:
    if name is not None:
        raise ValueError(f"no {kind} {name!r}; this version has none yet")
    with json_only(json):
        print(f"no {kind}s in this version yet")
    emit(json, [])


def _arguments(text: str) -> dict[str, Any]:
    """`--args` as a mapping."""
    try:
        given = jsonlib.loads(text)
    except jsonlib.JSONDecodeError as error:
        raise ValueError(
            f"--args: got {text!r}, which is not JSON ({error.msg}); write '{{\"tolerance\": 0.1}}'"
        ) from None
    if not isinstance(given, dict):
        raise ValueError(f"--args: got {text!r}; a JSON object of the reward's arguments is needed")
    return given


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The mappings of a JSON-lines file; a line that is none is named by its number."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = jsonlib.loads(line)
        except jsonlib.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a row is a JSON object; got {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("eval")(eval_)
    for function in (score, chat, methods, tool):
        app.command()(function)
