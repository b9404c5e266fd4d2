"""Two processes whose rows hold several questions: one process of twice the batch, and quarantine by question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.train.run import train
from tests.train import small
from tests.train.pictures import break_picture, write_pictures
from tests.train.ranks import train_in_ranks

TOLERANCE = 1e-6  # measured: 3e-8, fp32, SGD
SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "free",
    "questions_per_row": 3,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "warmup_ratio": 0.0,
    "max_steps": 4,
    "save_steps": 2,
}


def write_questions(folder: Path) -> Path:
    """Nine pictures, one to four questions on each (row 1 shows two pictures, row 2 none)."""
    path = write_pictures(folder, 9)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = ["", "Is it bright? ", "Say it. ", "Which one, then? "]
    more = [
        line | {"id": f"{line['id']}-{k}", "problem": line["problem"] + asked[k]}
        for i, line in enumerate(lines)
        for k in range(1 + i % 4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in more))
    return path


def quarantined(run: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (run / "quarantine.jsonl").read_text().splitlines()]


def recipe(out: Path, rows: Path, batch: int, **keys: Any) -> dict[str, Any]:
    stage = SFT | {"per_device_train_batch_size": batch}
    data = {"rows": {"path": str(rows)}}
    return small.recipe(out, data=data, stages=[stage], eval={"data": []}, **keys).model_dump()


def test_two_ranks_are_one_of_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    rows = write_questions(tmp_path / "rows")
    assert train_in_ranks(recipe(tmp_path / "two", rows, 2)) == [0, 0]
    train(small.Recipe.model_validate(recipe(tmp_path / "one", rows, 4)))
    one, two = (small.weights(tmp_path / name / "model") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= TOLERANCE
    lines = [small.metrics(tmp_path / name) for name in ("one", "two")]
    for alone, together in zip(*lines, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert (together["rows"], together["tokens/learned"]) == (alone["rows"], alone["tokens/learned"])
        assert 0.5 < together["tokens/balance"] <= 1 and "tokens/balance" not in alone


def test_every_question_on_a_broken_picture_counts_once_on_both_ranks(tmp_path: Path) -> None:
    """Picture 7 has four questions of twenty-one: each is lost once, whichever rank drew them."""
    rows = write_questions(tmp_path / "rows")
    break_picture(rows.parent / "7.png")
    lost = {f"row-7-{k}" for k in range(4)}
    assert len(rows.read_text().splitlines()) == 21
    tree = recipe(tmp_path / "run", rows, 2, max_bad_fraction=4 / 21)
    assert train_in_ranks(tree | {"stages": [tree["stages"][0] | {"max_steps": 8}]}) == [0, 0]
    assert sorted(quarantined(tmp_path / "run")) == sorted(lost)
    tree = recipe(tmp_path / "strict", rows, 2, max_bad_fraction=3 / 21)
    tree |= {"stages": [tree["stages"][0] | {"max_steps": 8}]}
    assert train_in_ranks(tree) != [0, 0]
    assert set(quarantined(tmp_path / "strict")) == lost
