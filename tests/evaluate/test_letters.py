"""Questions asked again with letters: the worlds' own lettered rows, own rows, the run's table and its report."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmreason.data.sources import load_rows
from mmreason.evaluate import ablation_table, judge, lettered, parse_ablation, touched
from mmreason.report import write_report
from mmreason.schema import SourceConfig
from mmreason.train.run import train
from mmreason.types import Message, Part, Sample
from mmreason.validate import validate
from tests.train import small


def asked(text: str, **keys: Any) -> Sample:
    known = {"solution": "blue", "problem_type": "single_choice", "options": ("red", "blue", "dark blue")}
    return Sample("r:1", "r", (Message("user", (Part("text", text=text),)),), **(known | keys))


def words(sample: Sample) -> str:
    return sample.messages[-1].parts[-1].text


@pytest.mark.parametrize("world", ["image", "video", "audio", "av"])
def test_a_worlds_rows_become_its_lettered_rows(world: str, tmp_path: Path) -> None:
    """The same scenes asked with `options: lettered` have the same words and solutions, one by one."""
    rows = {
        style: load_rows(
            "w", SourceConfig(world=world, count=24, seed=5, split="test", options=style), tmp_path / style
        )
        for style in ("named", "lettered")
    }
    changed = 0
    for named, other in zip(rows["named"], rows["lettered"], strict=True):
        again = lettered(named)
        assert (again is None) == (not named.options)
        if again is not None:
            assert (words(again), again.solution) == (words(other), other.solution)
            assert (again.id, again.options, again.media) == (named.id, named.options, named.media)
            changed += 1
        assert lettered(other) is None
    assert changed >= 8


def test_own_rows_by_hand() -> None:
    again = lettered(asked("which? options: red, blue, dark blue. Say one."))
    assert again is not None and again.solution == "B"
    assert words(again) == "which? options: A red, B blue, C dark blue. Say one."
    for text in ("<answer>B</answer>", "<answer>(b)</answer>", "<answer>blue</answer>"):
        assert judge(again, text, 1).correct == 1.0
    assert judge(again, "<answer>A</answer>", 1).correct == 0.0
    several = lettered(asked("red, blue, dark blue?", solution="dark blue, red", problem_type="multi_choice"))
    assert several is not None and several.solution == "A,C"
    for row in (
        asked("which?"),  # names no options
        asked("red, blue, dark blue?", solution="B"),  # has letters
        asked("red, blue, dark blue?", solution=None),
        asked("how many?", options=(), solution="2", problem_type="numeric"),
    ):
        assert lettered(row) is None
    with pytest.raises(ValueError, match="ablate letters: no row has that to lose"):
        touched(parse_ablation("letters"), [asked("which?")])


def test_a_run_reports_the_drop_with_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    held_out = {"data": ["held_out"], "max_completion_length": 4, "before": False, "ablate": ["letters"]}
    recipe = small.recipe(tmp_path / "run", stages=[{**small.SFT, "max_steps": 1}], eval=held_out)
    # a model of one step is right about nothing: what it would say is made up here, right in words and wrong in letters
    monkeypatch.setattr("mmreason.train.evaluation.evaluate", by_words)
    train(recipe)
    block = json.loads((tmp_path / "run" / "ablations.json").read_text())["ablations"]["letters"]
    count = block["overall"]["n"]
    assert 0 < count < 6  # those with options
    assert block["plain"]["overall"]["accuracy"] == 1.0 and block["overall"]["accuracy"] == 0.0
    assert block["delta"]["overall"]["mean"] == -1.0
    console = Console(width=120, file=StringIO())
    console.print(ablation_table({"letters": block}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Options with letters" in shown and "Without a sense" not in shown
    assert all(word in shown for word in ("named", "lettered", "100.0", "-100.0"))
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Letters instead of words" in page and "drop with letters" in page
    assert "100.0% named, 0.0% with letters" in page.replace("\xa0", " ")
    assert "Is each sense used?" not in page


def by_words(samples: list[Sample], generate: Any, **keys: Any) -> Any:
    """Every answer is the solution where it is words or a number, and wrong where it is letters."""
    said = ["Z" if s.solution is None or s.solution.isupper() else s.solution for s in samples]
    return [
        judge(sample, f"<think></think><answer>{answer}</answer>", 3)
        for sample, answer in zip(samples, said, strict=True)
    ]


def test_what_no_row_can_lose_is_said_before_the_run(tmp_path: Path) -> None:
    held_out = {"data": ["held_out"], "max_completion_length": 4, "ablate": ["video"]}
    recipe = small.recipe(tmp_path / "run", stages=[{**small.SFT, "max_steps": 1}], eval=held_out)
    assert [p for p in validate(recipe).problems if "ablate video: no row has that to lose" in p]
    with pytest.raises(ValueError, match="ablate video: no row has that to lose"):
        train(recipe)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
