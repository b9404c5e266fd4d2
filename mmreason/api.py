"""What the command line and `from mmreason import train, evaluate` both call: train with its report, evaluate."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from mmreason.evaluate import ablation_table, gain_table, read_eval, table
from mmreason.report import write_report
from mmreason.schema import Recipe
from mmreason.train.evaluation import evaluate_model
from mmreason.train.run import train as run
from mmreason.validate import settings_problems

__all__ = ["evaluate_model", "train"]


def train(recipe: Recipe) -> dict[str, Any]:
    """Run the recipe to its end, print the table of what it learned, and write report.html beside it.

    Returns `{"run_dir", "model", "report", "eval", "seconds"}`.

    Raises:
        ValueError: the recipe's groups, rewards, gates or trackers, its data, or its output_dir do not fit; says what
            to do.
    """
    problems = settings_problems(recipe, int(os.environ.get("WORLD_SIZE", 1)))
    if problems:  # now, and not when the last stage begins
        raise ValueError("\n  ".join(["this recipe cannot be trained:", *problems]))
    result = run(recipe)
    if not result["is_main"]:
        return result
    run_dir = Path(result["run_dir"])
    result["report"] = str(write_report(run_dir))
    console = Console(stderr=True, highlight=False, markup=False)
    stored = read_eval(run_dir)
    if stored:
        console.print(table(stored))
        gains = gain_table(stored)
        if gains is not None:
            console.print(gains)
    again = run_dir / "ablations.json"
    if again.is_file():
        console.print(ablation_table(json.loads(again.read_text(encoding="utf-8"))["ablations"]))
    console.print(f"model   {result['model']}\nreport  {result['report']}")
    return result
