"""The commands that need a model, on a small run: eval, chat, export, report, compare, and the Python API's names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import mmreason
from mmreason.cli import app

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.base.count=16",
    "data.warm.count=16",
    "data.prompts.count=16",
    "data.held_out.count=8",
    "stages.sft.max_steps=1",
    "stages.grpo.max_steps=2",
    "stages.grpo.max_completion_length=8",
    "eval.max_completion_length=8",
    "num_threads=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "run"
    recipe = mmreason.load_recipe(ROOT / "recipes" / "debug.yaml", [*SMALL, f"output_dir={folder}"])
    assert mmreason.train(recipe)["model"] == str(folder / "model")
    return folder


def mm(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_directory_holds_what_the_readme_says(run: Path) -> None:
    files = [
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "eval.json",
        "report.html",
        "probe.safetensors",
    ]
    assert [name for name in files if not (run / name).is_file()] == []
    assert mmreason.load_recipe(run / "recipe.yaml").output_dir == str(run)


def test_eval_measures_a_model_on_rows(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    rows = run / "data" / "held_out" / "rows.jsonl"
    mm("eval", run / "model", "--data", rows, "--limit", 4, "--max-completion-length", 4, "--json", out)
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["overall"]["n"] == 4
    assert set(result["overall"]) >= {"accuracy", "soft", "chance", "think_rate", "mean_length", "format"}


def test_eval_writes_each_answer_as_a_run_does(run: Path, tmp_path: Path) -> None:
    """The final model on the run's own questions: the rows of the run's last stage, byte for byte but for the root."""
    from mmreason.evaluate import EvalRow, read_rows

    out = tmp_path / "new" / "rows.jsonl"
    data = run / "data" / "held_out" / "rows.jsonl"
    mm("eval", run / "model", "--data", data, "--max-completion-length", 8, "--rows", out)
    made, stored = read_rows(out), read_rows(run / "eval" / "grpo.jsonl")
    assert len(made) == len(stored) == 8

    def told(row: EvalRow) -> tuple[Any, ...]:
        return (row.id, row.question, row.solution, row.completion, row.correct, row.length, row.evidence)

    assert [told(row) for row in made] == [told(row) for row in stored]
    assert all(Path(medium["root"]) == data.parent for row in made for medium in row.media)
    with pytest.raises(ValueError, match="is a folder; name a file"):
        mm("eval", run / "model", "--data", data, "--rows", tmp_path)


def test_chat_answers_about_a_picture_and_refuses_what_is_none(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    out = tmp_path / "chat.json"
    picture = ["--image", tmp_path / "red.png", "--max-completion-length", 4, "--json", out]
    mm("chat", run / "model", "which colour?", *picture)
    assert isinstance(json.loads(out.read_text())["completion"], str)
    with pytest.raises(ValueError, match="none.png"):
        mm("chat", run / "model", "which colour?", "--image", tmp_path / "none.png")


def test_chat_puts_a_films_own_sound_behind_it() -> None:
    from mmreason.cli.chat import together

    a, b, c = Path("a.mp4"), Path("b.mp4"), Path("c.wav")
    assert together([("video", a), ("video", b), ("audio", c), ("audio", b), ("audio", a)]) == [
        ("audio", c), ("video", a), ("audio", a), ("video", b), ("audio", b)
    ]  # fmt: skip
    assert together([("image", a), ("audio", c)]) == [("image", a), ("audio", c)]


def test_export_writes_the_same_weights_once(run: Path, tmp_path: Path) -> None:
    (checkpoint, *_) = sorted(run.glob("checkpoint-*"))
    mm("export", checkpoint, tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    kept = load_file(checkpoint / "model.safetensors")
    assert exported.keys() == kept.keys()
    assert all(bool((exported[name] == kept[name]).all()) for name in kept)
    with pytest.raises(ValueError, match="is there already"):
        mm("export", checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no model"):
        mm("export", tmp_path, tmp_path / "other")


def test_report_is_rebuilt(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    mm("report", run)
    assert len((run / "report.html").read_bytes()) == pytest.approx(len(before), rel=0.1)


@pytest.mark.slow
def test_compare_runs_recipes_and_seeds_into_one_table(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    for path in (first, second):
        path.write_text((ROOT / "recipes" / "debug.yaml").read_text())
    overrides = [part for setting in SMALL for part in ("--set", setting)]
    command = ["compare", first, second, "--seeds", 2, "--out", tmp_path / "runs", *overrides]
    table = mm(*command, "--json", tmp_path / "compare.json")
    result = json.loads((tmp_path / "compare.json").read_text())
    assert [(r["recipe"], r["seed"]) for r in result["runs"]] == [
        ("first", 0),
        ("first", 1),
        ("second", 0),
        ("second", 1),
    ]
    same = result["recipes"]["second"]["difference"]  # the same recipe under another name
    assert (same["mean"], same["low"], same["high"]) == (0.0, 0.0, 0.0)
    assert "against first" in table


TRAIN = ["mmreason.cli", "train"]
LAUNCHERS = {
    "mmreason": ["mmreason.cli", "launch", "--nproc", "2"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *TRAIN],
    "deepspeed": ["deepspeed.launcher.runner", "--num_gpus", "2", "--module", *TRAIN],
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["null", "zero2"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train(launcher: str, engine: str, tmp_path: Path) -> None:
    """However they are started; `--num_gpus` are processes, on a CPU too."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(ROOT / "recipes" / "debug.yaml"), *SMALL]
    done = subprocess.run(
        [*command, f"deepspeed={engine}", f"output_dir={tmp_path}/run"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    states = [json.loads(path.read_text()) for path in tmp_path.glob("run/checkpoint-*/trainer_state.json")]
    assert [state["world_size"] for state in states] == [2] * len(states) != []
