"""The README's promise: ten pictures and rows in any accepted shape train by its ten-line recipe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

import mmreason
from mmreason.data.rows import parse_row
from mmreason.validate import validate_file

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "yellow", "white")
QUESTION = "Which colour is this?"


def readme_recipe() -> str:
    """The YAML block of the README."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return block


def truth(i: int) -> dict[str, Any]:
    return {"solution": COLOURS[i % 5], "problem_type": "single_choice", "options": list(COLOURS)}


def typed_parts(i: int) -> dict[str, Any]:
    parts = [{"type": "image", "image": f"{i}.png"}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": parts}], **truth(i)}


def markers(i: int) -> dict[str, Any]:
    return {"problem": f"<image>{QUESTION}", "images": [f"{i}.png"], **truth(i)}


def marked_messages(i: int) -> dict[str, Any]:
    turn = {"role": "user", "content": f"<image>\n{QUESTION}"}
    return {"messages": [turn], "images": [f"{i}.png"], **truth(i)}


def lettered(i: int) -> dict[str, Any]:
    return markers(i) | {"solution": "<answer>" + "ABCDE"[i % 5] + "</answer>"}


def write_pictures(folder: Path) -> None:
    for i in range(10):
        Image.new("RGB", (48, 40), COLOURS[i % 5]).save(folder / f"{i}.png")


def write_jsonl(folder: Path, shape: Callable[[int], dict[str, Any]]) -> None:
    rows = [json.dumps(shape(i)) for i in range(10)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def train_here(overrides: list[str]) -> dict[str, Any]:
    validate_here(overrides)
    return mmreason.train(mmreason.load_recipe("own_data.yaml", [*overrides, "num_threads=1"]))


def validate_here(overrides: list[str]) -> None:
    Path("own_data.yaml").write_text(readme_recipe(), encoding="utf-8")
    report = validate_file("own_data.yaml", overrides)
    assert report.problems == [] and report.sources["mine"]["media"] == 10


def check_run(result: dict[str, Any]) -> None:
    lines = [
        json.loads(line) for line in (Path(result["run_dir"]) / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 5  # three SFT steps, two GRPO steps
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert (Path(result["model"]) / "model.safetensors").is_file()
    assert not (Path(result["run_dir"]) / "quarantine.jsonl").exists()


def test_the_readmes_recipe_is_ten_lines_and_the_file_in_recipes() -> None:
    text = (ROOT / "recipes" / "own_data.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(readme_recipe()) == yaml.safe_load(text)
    assert len(readme_recipe().strip().splitlines()) == 10


def test_the_readmes_rows_are_rows() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    samples = [parse_row(line, source="mine", line=1, root=".") for line in block.splitlines()]
    assert [sample.modality for sample in samples] == ["image", "image", "av", "audio"]


@pytest.mark.parametrize("shape", [typed_parts, markers], ids=lambda f: f.__name__)
def test_ten_pictures_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Callable[[int], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    write_jsonl(tmp_path, shape)
    check_run(train_here([]))


@pytest.mark.parametrize("shape", [marked_messages, lettered], ids=lambda f: f.__name__)
def test_further_spellings_are_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    write_jsonl(tmp_path, shape)
    validate_here([])


def test_a_parquet_file_that_holds_the_pictures_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    rows = []
    for i in range(10):
        picture = {"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": f"{i}.png"}
        rows.append(markers(i) | {"images": [picture]})
        (tmp_path / f"{i}.png").unlink()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    check_run(train_here(["data.mine.path=rows.parquet"]))


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.from_python import main

    monkeypatch.chdir(tmp_path)
    sizes = [
        f"data.{name}.count={count}"
        for name, count in {"base": 8, "warm": 8, "prompts": 8, "held_out": 4}.items()
    ]
    steps = ["stages.sft.max_steps=1", "stages.grpo.max_steps=2", "eval.max_completion_length=8"]
    accuracy = main(str(ROOT / "recipes" / "debug.yaml"), [*sizes, *steps, "num_threads=1"])
    assert 0.0 <= accuracy <= 1.0
