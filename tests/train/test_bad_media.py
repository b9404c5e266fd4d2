"""A medium that cannot be read during training: named in quarantine, bounded by a share, or a reason to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmreason.schema import Recipe
from mmreason.train.run import train
from tests.data.bad_media import BROKEN, write_rows
from tests.tiny import WHISPER
from tests.train import small
from tests.train.killed import killed
from tests.train.pictures import break_picture, write_pictures

GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "max_steps": 3,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "reward_funcs": [small.REWARD],
    "gate": {"name": "balanced", "low": 0.0, "high": 1.0, "max_rounds": 5},
}
SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "free",
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "save_steps": 2,
}


def recipe(tmp_path: Path, broken: list[int], name: str = "run", **keys: Any) -> Recipe:
    rows = write_pictures(tmp_path / f"rows-{name}")
    for i in broken:
        break_picture(rows.parent / f"{i}.png")
    data = {"rows": {"path": str(rows)}}
    keys = {"stages": [SFT, GRPO], "eval": {"data": []}, **keys}
    return small.recipe(tmp_path / name, data=data, **keys)


def quarantined(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)


def test_a_broken_picture_is_named_once_and_the_run_goes_on(tmp_path: Path) -> None:
    train(recipe(tmp_path, [4], max_bad_fraction=0.2))
    (line,) = quarantined(tmp_path / "run")
    assert (line["source"], line["id"]) == ("rows", "row-4") and line["medium"].endswith("4.png")
    assert "4.png" in line["reason"] and line["reason"] != ""
    lines = small.metrics(tmp_path / "run")
    assert [x["stage"] for x in lines] == ["sft"] * 5 + ["grpo"] * 3
    assert all(
        x["rows"] == 4 for x in lines
    )  # the next row, or another prompt, takes the place of a broken one
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_broken_films_and_sounds_are_named_each_for_its_own_fault(tmp_path: Path) -> None:
    rows, why = write_rows(tmp_path / "films")
    hears = {
        "assemble": small.ASSEMBLE | {"audio": [WHISPER | {"max_source_positions": 200, "audio_merge": 10}]}
    }
    stages = [SFT | {"rationale": "none"}, GRPO | {"gate": GRPO["gate"] | {"max_rounds": 20}}]
    data = {"rows": {"path": str(rows)}}
    train(
        small.recipe(
            tmp_path / "run", model=hears, data=data, stages=stages, eval={"data": []}, max_bad_fraction=0.9
        )
    )
    said = {line["id"]: line for line in quarantined(tmp_path / "run")}
    assert said.keys() == why.keys()
    for name, reason in why.items():
        assert reason in said[name]["reason"]
        assert said[name]["medium"].split(", ")[-1] == BROKEN[name][0][-1][1]
    assert all(line["rows"] == 4 for line in small.metrics(tmp_path / "run"))


def test_too_many_broken_pictures_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        train(recipe(tmp_path, [3, 4], max_bad_fraction=0.2))
    message = str(caught.value)
    assert "data.rows: 2 of 6 rows could not be read; allowed is a share of 0.2" in message
    assert "max_bad_fraction" in message and "quarantine.jsonl" in message
    assert {line["id"] for line in quarantined(tmp_path / "run")} == {"row-3", "row-4"}


def test_a_recipe_may_stop_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"4\.png"):
        train(recipe(tmp_path, [4], on_bad_media="stop", max_bad_fraction=1.0))
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()


def test_no_readable_row_at_all_stops_with_a_pointer(tmp_path: Path) -> None:
    rows = write_pictures(tmp_path / "rows-run")
    lines = [line for line in rows.read_text().splitlines() if '"images": []' not in line]
    with pytest.raises(ValueError, match=r"no readable rows in 100 draws; see quarantine\.jsonl"):
        made = recipe(tmp_path, list(range(6)), max_bad_fraction=1.0)
        rows.write_text("\n".join(lines) + "\n")
        train(made)


def test_a_stages_own_bounds_hold(tmp_path: Path) -> None:
    """Prompts have 18 to 52 tokens; the row of two pictures is too long for GRPO alone."""
    stages = [SFT, GRPO | {"max_prompt_length": 45}]
    train(recipe(tmp_path, [], stages=stages, max_bad_fraction=0.2))
    (line,) = quarantined(tmp_path / "run")
    assert line["id"] == "row-1" and "stages.grpo.max_prompt_length" in line["reason"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(x)["rows"] == 4 for x in lines)


def test_a_broken_picture_costs_every_question_of_its_conversation(tmp_path: Path) -> None:
    """Two questions on one broken picture are two rows of seven, and are counted once each by later stages too."""
    made = recipe(tmp_path, [4], stages=[SFT | {"questions_per_row": 2}, GRPO], max_bad_fraction=0.29)
    path = tmp_path / "rows-run" / "rows.jsonl"
    again = json.loads(path.read_text().splitlines()[4]) | {"id": "row-again"}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    train(made)
    assert sorted(line["id"] for line in quarantined(tmp_path / "run")) == ["row-4", "row-again"]
    made = made.model_copy(update={"output_dir": str(tmp_path / "strict"), "max_bad_fraction": 0.2})
    with pytest.raises(ValueError, match="data.rows: 2 of 7 rows could not be read"):
        train(made.model_copy(update={"stages": made.stages[:1]}))


def test_a_resumed_run_counts_what_was_lost_before(tmp_path: Path) -> None:
    """The same end, and no row named twice."""
    train(recipe(tmp_path, [4], "whole", max_bad_fraction=0.2))
    made = recipe(tmp_path, [4], max_bad_fraction=0.2)
    killed(made.model_dump(), step=5)
    train(made)
    assert len(quarantined(tmp_path / "run")) == 1
    assert small.metrics(tmp_path / "whole") == small.metrics(tmp_path / "run")
    assert small.same_weights(tmp_path / "whole" / "model", tmp_path / "run" / "model")
