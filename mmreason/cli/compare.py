"""`mmreason compare`: recipes x seeds under one budget, cell after cell, into one table.

A cell is one run in a folder of its own. One that is finished is not run again, one that was cut off goes on from its
newest checkpoint: a compare that was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from mmreason.cli.compare_stages import stage_gains
from mmreason.evaluate import EvalRow, crossed_bootstrap, read_eval, stage_rows
from mmreason.recipe import dump_recipe, load_recipe
from mmreason.report import write_report
from mmreason.report.load import read_object
from mmreason.schema import GRPOStage, Recipe, SFTStage, StageConfig
from mmreason.train.folder import differences

Question = tuple[str, str, str, str | None]  # source, id, words, solution: the same question in every cell


@dataclass(frozen=True)
class Cell:
    """One run of the comparison.

    Example: `Cell("grpo", 1, recipe).folder` is `Path("runs/compare/grpo-seed1")`.
    """

    name: str  # of the recipe: its file's stem
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return Path(self.recipe.output_dir)

    @property
    def stage(self) -> str:
        """The last stage of the main line whose end is evaluated; "" when none is."""
        names = [s.name for s in _main_line(self.recipe) if s.evaluate and self.recipe.eval.data]
        return names[-1] if names else ""


def compare_recipes(
    recipes: Sequence[Path],
    seeds: int,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    any_budget: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run every recipe with seeds 0 .. seeds-1 under `out` and compare the ends of their main lines.

    Returns `{"runs": [...], "recipes": {name: ...}}`: see `_run` and `_summary` for what these hold.

    Raises:
        ValueError: the recipes cannot be compared, a cell's folder holds another run, or a cell fails; the message
            names it, and what is finished stays.
    """
    cells = plan(recipes, seeds, out, overrides, any_budget=any_budget)
    threads = torch.get_num_threads()
    for number, cell in enumerate(cells, 1):
        found = finished(cell)
        if not found:
            torch.set_num_threads(threads)  # a recipe that names none must not inherit the last one's
            _train(cell)
        accuracy = read_eval(cell.folder)[cell.stage]["overall"]["accuracy"]
        tell(
            f"[{number}/{len(cells)}] {cell.name}, seed {cell.seed}: {_percent(accuracy)}"
            + (" (was finished)" if found else "")
        )
    return collect(cells)


def plan(
    recipes: Sequence[Path], seeds: int, out: Path, overrides: Sequence[str], *, any_budget: bool = False
) -> list[Cell]:
    """Every cell, recipe by recipe; all recipes are read and held against each other before the first run starts."""
    names = [path.stem for path in recipes]
    if len(set(names)) != len(names):
        raise ValueError(f"compare: two recipes share a file name, which names their runs; got {names}")
    cells = []
    for path in recipes:
        for seed in range(seeds):
            own = [*overrides, f"seed={seed}", f"output_dir={out / path.stem}-seed{seed}"]
            cells.append(Cell(path.stem, seed, load_recipe(path, own)))
    unmeasured = sorted({cell.name for cell in cells if not cell.stage})
    if unmeasured:
        raise ValueError(
            f"compare: {unmeasured} evaluate nothing at the end (eval.data, evaluate), so there is nothing to compare; "
            "name held-out rows in eval.data"
        )
    budgets = {cell.name: budget(cell.recipe) for cell in cells}
    if len(set(budgets.values())) > 1 and not any_budget:
        listed = "".join(f"\n  {name}: {spent}" for name, spent in budgets.items())
        raise ValueError(
            f"compare: the recipes do not learn under the same budget:{listed}\nset the steps alike (--set "
            "stages.NAME.max_steps=N), or compare them all the same with --any-budget"
        )
    return cells


def budget(recipe: Recipe) -> str:
    """What the main line may learn from, in words: rows (of GRPO completions), and what cannot be counted before.

    Example: 100 steps of 8 rows and an epoch over a file: "800 rows, 1.0 epochs of rows.jsonl".
    """
    rows, uncounted = 0.0, []
    for stage in _main_line(recipe):
        sources = [recipe.data[name] for name in stage.data]
        sizes = [source.count if source.world is not None else source.limit for source in sources]
        known = [size for size in sizes if size is not None]
        a_step = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
        a_step *= stage.questions_per_row if isinstance(stage, SFTStage) else 1
        group = stage.num_generations * stage.num_iterations if isinstance(stage, GRPOStage) else 1
        if isinstance(stage, SFTStage) and stage.time_of is not None:
            uncounted.append(f"the time of stage {stage.time_of}")
        elif stage.max_steps is not None:
            rows += stage.max_steps * a_step
        elif len(known) == len(sizes):
            rows += (stage.num_train_epochs or 0.0) * sum(known) * group
        else:
            files = " and ".join(str(source.path or source.world) for source in sources)
            uncounted.append(
                f"{stage.num_train_epochs} epochs of {files}" + (f" x {group}" if group > 1 else "")
            )
    return ", ".join([f"{rows:.0f} rows", *uncounted])


def finished(cell: Cell) -> bool:
    """Whether the cell's folder holds the finished run of its recipe.

    Raises:
        ValueError: it holds the finished run of another recipe.
    """
    stored = cell.folder / "recipe.yaml"
    if not (stored.exists() and (cell.folder / "timing.json").exists()):
        return False
    before = yaml.safe_load(dump_recipe(load_recipe(stored)))
    changed = differences(before, yaml.safe_load(dump_recipe(cell.recipe)))
    if changed:
        raise ValueError(
            f"compare: {cell.folder} holds the finished run of another recipe:\n  "
            + "\n  ".join(changed)
            + "\ntake another --out, remove that folder, or put these keys back"
        )
    if not (cell.folder / "report.html").exists():  # killed in the last moment
        write_report(cell.folder)
    return True


def collect(cells: Sequence[Cell]) -> dict[str, Any]:
    """The finished cells as one value: see `compare_recipes`."""
    names = list(dict.fromkeys(cell.name for cell in cells))
    answers = [_answers(cell) for cell in cells]
    common = [q for q in answers[0] if all(q in other for other in answers)]
    if not common:
        listed = ", ".join(sorted({f"{c.name} ({', '.join(c.recipe.eval.data)})" for c in cells}))
        raise ValueError(
            f"compare: no held-out question is answered in every run, so nothing can be paired: {listed}; give the "
            "recipes the same eval.data under the same name"
        )
    table = {
        name: [[a[q] for q in common] for a, cell in zip(answers, cells, strict=True) if cell.name == name]
        for name in names
    }
    runs = [_run(cell) for cell in cells]
    summaries = {
        name: _summary([run for run in runs if run["recipe"] == name], table[name], table[names[0]])
        for name in names
    }
    summaries[names[0]]["difference"] = None
    for name in names:
        own = [cell for cell in cells if cell.name == name]
        branches = [stage.name for stage in own[0].recipe.stages if stage.branch]
        summaries[name]["budget"] = budget(own[0].recipe)
        summaries[name]["stages"] = stage_gains([cell.folder for cell in own], branches)
    return {"runs": runs, "recipes": summaries}


def comparison_table(result: Mapping[str, Any]) -> Table:
    """One row a recipe: mean and spread of exact accuracy over the seeds, and the paired difference to the first."""
    first = next(iter(result["recipes"]))
    table = Table(
        "recipe",
        "seeds",
        "accuracy",
        "sd",
        "lowest to highest",
        f"against {first}",
        "95% interval",
        "minutes",
    )
    questions = 0
    for name, row in result["recipes"].items():
        cells = [name, str(row["n"]), _percent(row["mean"]), _points(row["std"], sign=False)]
        cells.append(f"{_percent(row['low'])} to {_percent(row['high'])}")
        other = row["difference"]
        cells.append(_points(other and other["mean"]))
        cells.append(f"{_points(other['low'])} to {_points(other['high'])}" if other else "-")
        questions = other["questions"] if other else questions
        table.add_row(*cells, f"{row['seconds'] / 60:.1f}")
    if questions:
        table.caption = (
            f"points of exact accuracy on {questions} held-out questions, seed by seed; the interval is that of other "
            "questions"
            + (" and other seeds" if result["recipes"][first]["n"] > 1 else ", not of other seeds")
        )
    return table


def _train(cell: Cell) -> None:
    from mmreason.api import train

    try:
        train(cell.recipe)
    except ValueError as error:
        raise ValueError(
            f"compare: {cell.name}, seed {cell.seed}: {error}\nthe finished runs stay; the same command goes on"
        ) from error


def _main_line(recipe: Recipe) -> list[StageConfig]:
    return [stage for stage in recipe.stages if not stage.branch]


def _answers(cell: Cell) -> dict[Question, float]:
    """Question -> exact verdict at the end of the main line."""
    rows: Sequence[EvalRow] = stage_rows(cell.folder, read_eval(cell.folder)[cell.stage])
    return {(r.source, r.id, r.question, r.solution): r.correct for r in rows if r.correct is not None}


def _run(cell: Cell) -> dict[str, Any]:
    """{recipe, seed, output_dir, stage, accuracy, by_modality, seconds (of training), peak_memory_bytes}."""
    block = read_eval(cell.folder)[cell.stage]
    timing = read_object(cell.folder / "timing.json")
    return {
        "recipe": cell.name,
        "seed": cell.seed,
        "output_dir": cell.recipe.output_dir,
        "stage": cell.stage,
        "accuracy": block["overall"]["accuracy"],
        "by_modality": {name: part["accuracy"] for name, part in block["by_modality"].items()},
        "seconds": sum(timing["stages"].get(stage.name, 0.0) for stage in _main_line(cell.recipe)),
        "peak_memory_bytes": timing["peak_memory_bytes"],
    }


def _summary(
    runs: Sequence[Mapping[str, Any]], mine: Sequence[Sequence[float]], first: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """{n, mean, std, low, high, by_modality, seconds, difference: {mean, low, high, questions, by_seed}}.

    `mine` and `first` hold the verdicts of this recipe and of the first one, a line a seed. `std` is None of one seed.
    """
    values = [run["accuracy"] for run in runs]
    apart = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(mine, first, strict=True)]
    modalities = [
        m for m in runs[0]["by_modality"] if all(run["by_modality"].get(m) is not None for run in runs)
    ]
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(values),
        "high": max(values),
        "by_modality": {m: statistics.fmean(run["by_modality"][m] for run in runs) for m in modalities},
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "difference": {
            **crossed_bootstrap(apart),
            "questions": len(apart[0]),
            "by_seed": [statistics.fmean(line) for line in apart],
        },
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _points(value: float | None, *, sign: bool = True) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
