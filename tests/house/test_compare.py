"""`mmreason compare`: every cell once, whatever kills it; pairs that are pairs; recipes that cannot be compared."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from mmreason.cli import app
from mmreason.cli import compare as module
from mmreason.cli.compare import Cell, budget, collect, compare_recipes, comparison_table, finished, plan
from mmreason.cli.compare_stages import stage_tables
from mmreason.evaluate import EvalRow, save_stage
from mmreason.recipe import dump_recipe
from mmreason.train import folder
from tests.train import small
from tests.train.killed import arm

TINY = small.SFT | {"max_steps": 3, "save_steps": 2, "replay": {}}


def write_recipe(path: Path, **changes: Any) -> Path:
    """A file with the small recipe, its single stage changed."""
    recipe = small.recipe(
        Path("unused"), stages=[TINY | changes], eval={"data": ["held_out"], "before": False}
    )
    path.write_text(dump_recipe(recipe))
    return path


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two recipes that differ in the learning rate."""
    small.without_probe(monkeypatch)
    return [write_recipe(tmp_path / "slow.yaml"), write_recipe(tmp_path / "fast.yaml", learning_rate=2e-2)]


# --- cells


def _compare_to_death(recipes: list[Path], out: Path, step: int) -> None:
    folder.write_probe = lambda *args: None  # type: ignore[assignment]
    torch.set_num_threads(1)
    arm(step=step)
    compare_recipes(recipes, 1, out)


def test_a_killed_compare_goes_on_where_it_was(pair: list[Path], tmp_path: Path) -> None:
    """slow is done; fast is killed after its first checkpoint; nothing that is done is done again."""
    said: list[str] = []
    whole = compare_recipes(pair, 1, tmp_path / "whole", tell=said.append)
    assert len(said) == 2 and said[1].startswith("[2/2] fast, seed 0: ") and "was finished" not in said[1]
    compare_recipes(pair[:1], 1, tmp_path / "runs")
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.killed"])
    process = context.Process(target=_compare_to_death, args=(pair, tmp_path / "runs", 3))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "runs" / "fast-seed0" / "checkpoint-2").is_dir()
    before = os.stat(tmp_path / "runs" / "slow-seed0" / "model").st_mtime_ns
    said.clear()
    result = compare_recipes(pair, 1, tmp_path / "runs", tell=said.append)
    assert ["was finished" in line for line in said] == [True, False]
    assert os.stat(tmp_path / "runs" / "slow-seed0" / "model").st_mtime_ns == before
    small.assert_same_run(tmp_path / "whole" / "fast-seed0", tmp_path / "runs" / "fast-seed0")
    assert [r["accuracy"] for r in result["runs"]] == [r["accuracy"] for r in whole["runs"]]
    assert result["recipes"]["fast"]["difference"] == whole["recipes"]["fast"]["difference"]


def test_a_finished_cell_of_another_recipe_is_refused(pair: list[Path], tmp_path: Path) -> None:
    compare_recipes(pair[:1], 1, tmp_path / "runs", tell=lambda line: None)
    with pytest.raises(ValueError) as caught:
        compare_recipes(pair[:1], 1, tmp_path / "runs", ["stages.sft.learning_rate=0.5"])
    assert "slow-seed0 holds the finished run of another recipe" in str(caught.value)
    assert "stages.0.learning_rate: was 0.002, now 0.5" in str(caught.value)
    assert "take another --out" in str(caught.value)


def test_a_cell_that_fails_is_named(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(recipe: Any) -> None:
        raise ValueError("the disk is made of cheese")

    monkeypatch.setattr("mmreason.api.train", broken)
    with pytest.raises(
        ValueError, match=r"compare: slow, seed 0: the disk is made of cheese\nthe finished runs stay"
    ):
        compare_recipes(pair, 1, tmp_path / "runs")


def test_a_run_killed_before_its_report_gets_one(pair: list[Path], tmp_path: Path) -> None:
    compare_recipes(pair[:1], 1, tmp_path / "runs", tell=lambda line: None)
    (cell,) = plan(pair[:1], 1, tmp_path / "runs", [])
    (cell.folder / "report.html").unlink()
    assert finished(cell) and (cell.folder / "report.html").is_file()
    (cell.folder / "timing.json").unlink()
    assert not finished(cell)


# --- what is refused before anything runs


def test_what_cannot_be_compared(pair: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="share a file name"):
        plan([pair[0], write_recipe(other / "slow.yaml")], 1, tmp_path, [])
    with pytest.raises(ValueError, match=r"\['slow'\] evaluate nothing at the end"):
        plan(pair[:1], 1, tmp_path, ["eval.data=[]"])
    long = write_recipe(tmp_path / "long.yaml", max_steps=9)
    with pytest.raises(ValueError, match=r"slow: 12 rows\n  long: 36 rows\nset the steps alike"):
        plan([pair[0], long], 1, tmp_path, [])
    assert len(plan([pair[0], long], 2, tmp_path, [], any_budget=True)) == 4
    assert len(plan([pair[0], long], 2, tmp_path, ["stages.sft.max_steps=5"])) == 4


def test_a_budget_counts_rows_of_the_main_line() -> None:
    epochs = TINY | {"max_steps": None, "num_train_epochs": 2.0}  # of 18 rows
    rival = TINY | {"name": "rival", "branch": True, "max_steps": 1000}
    recipe = small.recipe(Path("x"), stages=[TINY, epochs | {"name": "more"}, rival, small.GRPO])
    assert budget(recipe) == "96 rows"  # 3 x 4, 2 x 18, 8 x 6
    packed = small.recipe(Path("x"), stages=[TINY | {"questions_per_row": 2}])
    assert budget(packed) == "24 rows"  # as many as 3 x 4 may hold
    data = {name: source.model_dump() for name, source in recipe.data.items()} | {
        "warm": {"path": "rows.jsonl"}
    }
    assert budget(small.recipe(Path("x"), stages=[epochs], data=data)) == "0 rows, 2.0 epochs of rows.jsonl"


# --- numbers


def questions() -> list[EvalRow]:
    """Ten held-out questions, each answered wrong."""
    return [
        EvalRow(
            id=f"t:{i}",
            source="test",
            modality="image",
            problem_type="numeric",
            kind="count",
            difficulty=0.5,
            question="How many?",
            options=(),
            solution="2",
            completion="2",
            correct=0.0,
            soft=0.0,
            think=True,
            format=1.0,
            hedge=None,
            length=3,
        )  # fmt: skip
        for i in range(10)
    ]


def stored(
    tmp_path: Path, name: str, seed: int, right: list[int], minutes: float, source: str = "test"
) -> Cell:
    """A finished run whose answers to ten questions are right where `right` says."""
    recipe = small.recipe(tmp_path / f"{name}-{seed}", stages=[TINY])
    rows = [replace(r, source=source, correct=float(i in right)) for i, r in enumerate(questions())]
    save_stage(Path(recipe.output_dir), "sft", rows)
    timing = {"stages": {"sft": 60 * minutes}, "total_s": 1e6, "peak_memory_bytes": 5}
    (Path(recipe.output_dir) / "timing.json").write_text(json.dumps(timing))
    return Cell(name, seed, recipe)


def test_mean_spread_and_paired_difference_by_hand(tmp_path: Path) -> None:
    cells = [
        stored(tmp_path, "a", 0, [0, 1, 2, 3], 1.0),
        stored(tmp_path, "a", 1, [0, 1], 2.0),
        stored(tmp_path, "b", 0, [0, 1, 2, 3, 4], 4.0),
        stored(tmp_path, "b", 1, [2, 3, 4, 5, 6], 4.0),
    ]
    result = collect(cells)
    a, b = result["recipes"]["a"], result["recipes"]["b"]
    assert (a["n"], a["mean"], a["low"], a["high"]) == (2, pytest.approx(0.3), 0.2, 0.4)
    assert a["std"] == pytest.approx(0.02**0.5) and a["difference"] is None and a["seconds"] == 90.0
    assert b["mean"] == 0.5 and b["std"] == 0.0 and b["by_modality"] == {"image": 0.5}
    assert b["difference"]["mean"] == pytest.approx(0.2) and b["difference"]["questions"] == 10
    assert b["difference"]["by_seed"] == pytest.approx([0.1, 0.3])
    # seed by seed a question differs by 1 once in 10, and by 5 to -2 in 10: an interval that is no point, around 0.2
    assert -0.4 < b["difference"]["low"] < 0.0 < 0.3 < b["difference"]["high"] < 0.8
    console = Console(width=140, record=True, file=open(tmp_path / "out", "w"))
    console.print(comparison_table(result))
    text = console.export_text()
    for words in ("30.0%", "14.1", "20.0% to 40.0%", "against a", "+20.0", "1.5", "10 held-out questions"):
        assert words in text


def test_what_each_stage_gains_over_the_seeds_by_hand(tmp_path: Path) -> None:
    """Of ten questions, five in each of two groups: GRPO gains one or two of the first group, and never the second."""
    stages = [
        TINY,
        {**small.GRPO, "name": "grpo"},
        TINY | {"name": "rival", "branch": True, "init_from": "sft"},
    ]
    right = {"sft": ([0, 5], [0, 5]), "grpo": ([0, 1, 5], [0, 1, 2, 5]), "rival": ([0], [0, 5])}
    cells = []
    for seed in (0, 1):
        recipe = small.recipe(tmp_path / f"a-{seed}", stages=stages)
        for stage, parent in (("sft", None), ("grpo", "sft"), ("rival", "sft")):
            rows = [
                replace(r, correct=float(i in right[stage][seed]), group="easy" if i < 5 else "hard")
                for i, r in enumerate(questions())
            ]
            save_stage(Path(recipe.output_dir), stage, rows, parent=parent)
        timing = {"stages": {}, "total_s": 1.0, "peak_memory_bytes": 5}
        (Path(recipe.output_dir) / "timing.json").write_text(json.dumps(timing))
        cells.append(Cell("a", seed, recipe))
    lines = {line["name"]: line for line in collect(cells)["recipes"]["a"]["stages"]}
    assert list(lines) == ["overall", "easy", "hard"] and [line["n"] for line in lines.values()] == [10, 5, 5]
    assert lines["overall"]["accuracy"] == pytest.approx({"sft": 0.2, "grpo": 0.35, "rival": 0.15})
    gains = lines["easy"]["gains"]
    assert list(gains) == ["grpo on sft", "rival on sft", "grpo on rival"]
    assert gains["grpo on sft"]["mean"] == pytest.approx(0.3)
    assert gains["grpo on sft"]["by_seed"] == pytest.approx([0.2, 0.4])
    assert 0.0 <= gains["grpo on sft"]["low"] < 0.3 < gains["grpo on sft"]["high"] <= 1.0
    assert lines["hard"]["gains"]["grpo on sft"] == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "by_seed": [0.0, 0.0],
    }
    assert lines["hard"]["gains"]["grpo on rival"]["by_seed"] == pytest.approx([0.2, 0.0])
    console = Console(width=100, record=True, file=open(tmp_path / "out", "w"))
    for made in stage_tables("a", 2, list(lines.values())):
        console.print(made)
    text = " ".join(console.export_text().split())  # a title folds to its table's width
    assert "mean of 2 seeds" in text and "+30.0 [" in text and "interval over questions and seeds" in text


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path) -> None:
    result = collect([stored(tmp_path, "a", 0, [0], 1.0), stored(tmp_path, "b", 0, [0, 1], 1.0)])
    assert result["recipes"]["a"]["std"] is None
    console = Console(width=140, record=True, file=open(tmp_path / "out", "w"))
    console.print(comparison_table(result))
    assert "not of other seeds" in " ".join(console.export_text().split())


def test_runs_that_answered_other_questions_are_not_paired(tmp_path: Path) -> None:
    cells = [stored(tmp_path, "a", 0, [0], 1.0), stored(tmp_path, "b", 0, [0], 1.0, source="elsewhere")]
    with pytest.raises(ValueError, match="no held-out question is answered in every run"):
        collect(cells)


def test_threads_are_not_inherited_from_the_cell_before(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def pretend(recipe: Any) -> None:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(2)
        stored(tmp_path, Path(recipe.output_dir).name, 0, [0], 1.0)

    monkeypatch.setattr(module, "_train", lambda cell: pretend(cell.recipe))
    monkeypatch.setattr(module, "read_eval", lambda folder: {"sft": {"overall": {"accuracy": 0.1}}})
    monkeypatch.setattr(module, "collect", lambda cells: {})
    compare_recipes(pair, 1, tmp_path / "runs", tell=lambda line: None)
    torch.set_num_threads(1)
    assert seen == [1, 1]


def test_the_command_prints_the_table_and_writes_json(pair: list[Path], tmp_path: Path) -> None:
    arguments = ["compare", *map(str, pair), "--seeds", "1", "--out", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "compare.json")])
    assert done.exit_code == 0, done.output
    assert "against slow" in done.stdout and "[2/2] fast, seed 0" in done.stdout
    result = json.loads((tmp_path / "compare.json").read_text())
    assert [(r["recipe"], r["seed"], r["stage"]) for r in result["runs"]] == [
        ("slow", 0, "sft"),
        ("fast", 0, "sft"),
    ]
    assert set(result["recipes"]) == {"slow", "fast"} and result["recipes"]["fast"]["budget"] == "12 rows"
