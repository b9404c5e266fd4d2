"""Commands that run a recipe: train, validate, compare, launch, serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmreason.cli.common import JsonFile, Overrides, RecipePath, emit, json_only, show


def train(recipe: RecipePath, overrides: Overrides = None, json: JsonFile = None) -> None:
    """Run a recipe; goes on from the newest complete checkpoint in its output_dir."""
    from mmreason.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    with json_only(json):
        from mmreason.api import train as run

        result = run(resolved)
    emit(json, result)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from mmreason.train.distributed import leave

        leave()


def validate(
    recipe: RecipePath,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="that will train together")] = 1,
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", min=0.001, help="of each process; default: what is here")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Check everything that can be known before training; exit 1 and a list when something is wrong."""
    if not recipe.is_file():
        raise ValueError(f"validate: no recipe {str(recipe)!r}")
    with json_only(json):
        from mmreason.validate import this_room, validate_file

        report = validate_file(recipe, overrides or [], this_room(processes, memory_gb))
        show(report.table())
    emit(json, report.as_dict())
    if report.problems:
        raise typer.Exit(1)


def compare(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="recipes, the first is the baseline")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds: 0, 1, ...")] = 1,
    out: Annotated[Path, typer.Option(help="folder of the runs, one for each recipe and seed")] = Path(
        "runs/compare"
    ),
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override in every run")
    ] = None,
    any_budget: Annotated[
        bool, typer.Option("--any-budget", help="compare recipes that learn from different numbers of rows")
    ] = False,
    json: JsonFile = None,
) -> None:
    """Run several recipes with several seeds under one budget, and put them into one table; goes on after a kill."""
    from mmreason.cli.compare import compare_recipes, comparison_table
    from mmreason.cli.compare_stages import stage_tables

    with json_only(json):
        result = compare_recipes(recipes, seeds, out, set_ or [], any_budget=any_budget, tell=show)
        show(comparison_table(result))
        for name, summary in result["recipes"].items():
            for table in stage_tables(name, summary["n"], summary["stages"]):
                show(table)
    emit(json, result)


def launch(
    recipe: RecipePath,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option("--nproc", min=1, help="processes on this machine")] = 1,
) -> None:
    """Train with several processes on this machine, through torchrun."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from mmreason.recipe import load_recipe

    load_recipe(recipe, overrides or [])  # a wrong recipe is said once, not by every process
    arguments = ["--standalone", "--nproc_per_node", str(nproc), "-m", "mmreason.cli", "train", str(recipe)]
    try:
        torchrun([*arguments, *(overrides or [])])
    except (
        ChildFailedError
    ) as error:  # the process has said what is wrong; torchrun's own account adds nothing to it
        code = error.get_first_failure()[1].exitcode
        if code < 0:
            # NCCL's watchdog ends a process that waits in vain, and so does a machine without memory left
            print(
                f"mmreason: a process was ended by signal {-code}. Where it waited for another one (NCCL says "
                "timeout): raise ddp_timeout, or look for the process that stopped first. Where memory ran out: "
                "mmreason validate tells what to change. Started again, the run goes on from its newest checkpoint.",
                file=sys.stderr,
            )
        raise typer.Exit(max(code, 1)) from None


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="the recipe's model.model_name_or_path")],
    host: Annotated[
        str, typer.Option(help="who may connect may also load weights: keep it private")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    dtype: Annotated[
        str, typer.Option(help="auto: float32 on a CPU, the checkpoint's own on a GPU")
    ] = "auto",
    python: Annotated[
        Path | None, typer.Option(help="interpreter that has vLLM; default: this one, or .venv-vllm's")
    ] = None,
) -> None:
    """Serve a model by vLLM for recipes with `rollout: {engine: vllm}`; options behind `--` go to vLLM itself."""
    from mmreason.rollout.vllm_serve import become_server

    become_server(model, host=host, port=port, dtype=dtype, python=python, more=context.args)


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for function in (train, validate, compare, launch):
        app.command()(function)
    app.command(context_settings={"allow_extra_args": True})(serve)
