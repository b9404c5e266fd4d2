"""`mmreason compare`: recipes x seeds, one run after the other, each resumable, into one table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmreason.recipe import load_recipe
from mmreason.schema import Recipe


def compare_recipes(
    recipes: Sequence[Path], seeds: int, out: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """Train every recipe with seeds 0 .. seeds-1 under `out`, and collect the accuracy after the last stage.

    A run that is complete is not run again, one that was cut off goes on. Returns
    `{"runs": [{recipe, seed, output_dir, accuracy}], "recipes": {name: {mean, low, high, n, difference}}}`, the
    difference being the mean over seeds of this recipe less the first one with the same seed.
    """
    names = [path.stem for path in recipes]
    if len(set(names)) != len(names):
        raise ValueError(f"compare: two recipes share a file name, which names their runs; got {names}")
    plan = [
        (
            path.stem,
            seed,
            load_recipe(path, [*overrides, f"seed={seed}", f"output_dir={out / path.stem}-seed{seed}"]),
        )
        for path in recipes
        for seed in range(seeds)
    ]  # every recipe is read before the first run starts
    unmeasured = sorted({name for name, _, recipe in plan if not _evaluated(recipe)})
    if unmeasured:
        raise ValueError(
            f"compare: {unmeasured} evaluate nothing (eval.data, evaluate), so there is nothing to compare them by"
        )
    from mmreason.api import train

    runs = []
    for name, seed, recipe in plan:
        train(recipe)
        accuracy = _final_accuracy(recipe)
        runs.append({"recipe": name, "seed": seed, "output_dir": recipe.output_dir, "accuracy": accuracy})
    return {"runs": runs, "recipes": {name: _summary(name, names[0], runs) for name in names}}


def comparison_table(result: dict[str, Any]) -> Table:
    """One row a recipe: mean exact accuracy, lowest and highest seed, difference to the first recipe."""
    table = Table("recipe", "seeds", "accuracy", "lowest", "highest", "against the first")
    for name, row in result["recipes"].items():
        cells = [f"{row[key]:.1%}" for key in ("mean", "low", "high")]
        table.add_row(name, str(row["n"]), *cells, f"{100 * row['difference']:+.1f} points")
    return table


def _final_accuracy(recipe: Recipe) -> float:
    """Exact accuracy after the last evaluated stage of the main line."""
    evaluation = json.loads((Path(recipe.output_dir) / "eval.json").read_text(encoding="utf-8"))
    last = _evaluated(recipe)[-1]
    return float(evaluation[last]["overall"]["accuracy"])


def _evaluated(recipe: Recipe) -> list[str]:
    """The stages of the main line whose end is evaluated."""
    return [s.name for s in recipe.stages if s.evaluate and not s.branch and recipe.eval.data]


def _summary(name: str, first: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [run["accuracy"] for run in runs if run["recipe"] == name]
    base = [run["accuracy"] for run in runs if run["recipe"] == first]
    difference = statistics.mean(a - b for a, b in zip(mine, base, strict=True))
    return {
        "mean": statistics.mean(mine),
        "low": min(mine),
        "high": max(mine),
        "n": len(mine),
        "difference": difference,
    }
