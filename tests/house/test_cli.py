"""The command line: every command is there, mistakes are one message and an exit code, imports are late."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = (
    "train validate eval score chat tool compare launch serve data methods report bench export".split()
)  # DESIGN section 5


def mmreason(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmreason.cli", *arguments], capture_output=True, text=True, cwd=cwd
    )


def test_help_lists_every_command() -> None:
    done = mmreason("--help")
    assert done.returncode == 0
    missing = [name for name in COMMANDS if f" {name} " not in done.stdout]
    assert not missing


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["data", "make"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    done = mmreason(*command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_help_imports_neither_torch_nor_transformers() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'PIL') if m in sys.modules]"
    code = f"import sys, mmreason, mmreason.cli; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train", "no_such.yaml"], "no_such.yaml: 1 problem"),
        (["validate", "no_such.yaml"], "no recipe 'no_such.yaml'"),
        (["launch", "no_such.yaml", "--nproc", "2"], "no_such.yaml: 1 problem"),
        (["compare", "no_such.yaml"], "no_such.yaml: 1 problem"),
        (["report", "no_such_run"], "no run directory 'no_such_run'"),
        (["score", "no_such.jsonl", "--reward", "exact"], "no_such.jsonl"),
        (["eval", "./no_such_model", "--data", "no_such.jsonl"], "no_such.jsonl"),
        (["export", "no_such_checkpoint", "out"], "no_such_checkpoint"),
        (["chat", "./no_such_model", "why?"], "no_such_model"),
        (["data", "make", "no_such_world", "--out", "out"], "no_such_world"),
        (["serve", "./no_such_model"], "no folder './no_such_model'"),
        (["tool", "zoom"], "no tool 'zoom'"),
        (["bench", "speed"], "no benchmark 'speed'"),
        (["score", __file__, "--reward", "exact"], "test_cli.py:1: not JSON"),
    ],
)
def test_a_mistake_is_one_message_and_exit_1(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = mmreason(*arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_exits_2() -> None:
    assert mmreason("train").returncode == 2
    assert mmreason("nonsense").returncode == 2
    assert mmreason("eval", "model").returncode == 2


def test_json_on_standard_output_is_json_only(tmp_path: Path) -> None:
    done = mmreason("methods", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert mmreason("methods", "--json", str(tmp_path / "m.json")).stdout
    assert json.loads((tmp_path / "m.json").read_text()) == json.loads(done.stdout)


def test_tool_says_that_there_are_none() -> None:
    assert "no tools" in mmreason("tool").stdout


def test_bench_lists_its_benchmarks() -> None:
    assert mmreason("bench").stdout.split() == ["step", "rollout", "sft", "memory"]


def test_score_gives_stored_completions_their_rewards(tmp_path: Path) -> None:
    truth = {"solution": "red, blue", "problem_type": "multi_choice", "options": ["red", "green", "blue"]}
    given = ["red, blue", "red", "green"]
    rows = [truth | {"completion": f"<think>x</think><answer>{answer}</answer>"} for answer in given]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    wanted = ["--reward", "exact", "--reward", "subset", "--json", "-"]
    done = mmreason("score", "rows.jsonl", *wanted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["reward"] for row in result["exact"]["rows"]] == [1.0, 0.0, 0.0]
    assert [row["reward"] for row in result["subset"]["rows"]] == [1.0, 0.5, 0.0]


def test_data_make_writes_rows_and_pictures(tmp_path: Path) -> None:
    made = mmreason("data", "make", "image", "--out", "w", "--count", "8", "--seed", "3", cwd=tmp_path)
    other = mmreason("data", "make", "image", "--out", "w", "--count", "8", "--seed", "4", cwd=tmp_path)
    assert other.returncode == 1 and "made with other settings" in other.stderr
    assert made.returncode == 0, made.stderr
    assert len((tmp_path / "w" / "rows.jsonl").read_text().splitlines()) == 8
    assert (tmp_path / "w" / "images-000.zip").is_file()


def test_brackets_are_shown_and_not_taken_for_markup() -> None:
    done = mmreason("methods")
    assert done.returncode == 0 and "[subset]" in done.stdout and "[jaccard]" in done.stdout
