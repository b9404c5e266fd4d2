"""`dataloader_num_workers`: media decoded ahead by other processes change nothing but the time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mmreason.data.media import MediaLimits, ahead, decode, patience
from mmreason.schema import Recipe
from mmreason.train.grpo import GRPO as GRPO_
from mmreason.train.prepare import prepare
from mmreason.train.run import _method, train
from mmreason.types import DecodedMedium, MediumRef
from tests.data.bad_media import write_rows
from tests.data.test_ahead import BRITTLE, KILLER, SLEEPER, SLEEPY
from tests.tiny import WHISPER
from tests.train import small
from tests.train.killed import killed
from tests.train.pictures import write_pictures

HEARS = {"assemble": small.ASSEMBLE | {"audio": [WHISPER | {"max_source_positions": 200, "audio_merge": 10}]}}
SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["rows"],
    "rationale": "none",
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "questions_per_row": 2,
    "save_steps": 2,
}
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["rows"],
    "max_steps": 3,
    "num_generations": 2,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
    "reward_funcs": [small.REWARD],
    "sampler": {"name": "easy_to_hard"},
    "gate": {"name": "balanced", "low": 0.0, "high": 0.9, "max_rounds": 4},
}


@pytest.fixture(autouse=True)
def _without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)


def recipe(out: Path, rows: Path, workers: int, **keys: Any) -> Recipe:
    keys = {"model": HEARS, "stages": [SFT, GRPO], "max_bad_fraction": 0.9, **keys}
    keys |= {"eval": {"data": ["rows"], "max_completion_length": 4}, "dataloader_num_workers": workers}
    return small.recipe(out, data={"rows": {"path": str(rows)}}, **keys)


def quarantined(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_a_run_is_the_same_with_workers_killed_or_not(tmp_path: Path) -> None:
    """Films, sounds and every kind of broken file; the killed run goes on with another number of workers."""
    rows, _ = write_rows(tmp_path / "rows")
    train(recipe(tmp_path / "plain", rows, 0))
    train(recipe(tmp_path / "ahead", rows, 2))
    killed(recipe(tmp_path / "killed", rows, 1).model_dump(), step=5)
    train(recipe(tmp_path / "killed", rows, 0))
    for name in ("ahead", "killed"):
        small.assert_same_run(tmp_path / "plain", tmp_path / name)
    assert quarantined(tmp_path / "plain") == quarantined(tmp_path / "ahead")


def test_a_picture_that_ends_its_reader_is_quarantined_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BOOT", BRITTLE)
    rows = write_pictures(tmp_path / "rows")
    (rows.parent / "4.png").rename(rows.parent / KILLER)
    rows.write_text(rows.read_text().replace("4.png", KILLER))
    train(recipe(tmp_path / "run", rows, 1, model={"assemble": small.ASSEMBLE}))
    (line,) = quarantined(tmp_path / "run")
    assert (line["id"], line["medium"]) == ("row-4", KILLER)
    assert "the process that decoded it ended (SIGSEGV)" in line["reason"]
    assert [line["rows"] for line in small.metrics(tmp_path / "run")] == [4] * 7
    tried = (rows.parent / "tried.txt").read_text().split()
    assert tried.count(KILLER) == 2  # and never again, however often its row is drawn


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_picture_on_which_its_reader_hangs_is_quarantined_and_the_run_goes_on(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def sleepy(ref: MediumRef, limits: MediaLimits) -> DecodedMedium:
        tried.append(ref.path)
        if ref.path == SLEEPER:
            time.sleep(600)
        return decode(ref, limits)

    monkeypatch.setattr(ahead, "BOOT", SLEEPY)  # in a process of its own, and in the run's
    monkeypatch.setattr(patience, "decode", sleepy)
    rows = write_pictures(tmp_path / "rows")
    (rows.parent / "4.png").rename(rows.parent / SLEEPER)
    rows.write_text(rows.read_text().replace("4.png", SLEEPER))
    keys = {"model": {"assemble": small.ASSEMBLE}, "max_decode_seconds": 2.0}
    train(recipe(tmp_path / "run", rows, workers, **keys))
    (line,) = quarantined(tmp_path / "run")
    assert (line["id"], line["medium"]) == ("row-4", SLEEPER)
    assert "sleeper.png: not decoded after 2 s (max_decode_seconds)" in line["reason"]
    assert [line["rows"] for line in small.metrics(tmp_path / "run")] == [4] * 7
    tried += (rows.parent / "tried.txt").read_text().split() if workers else []
    assert tried.count(SLEEPER) == 1  # and never again, however often its row is drawn


@pytest.mark.parametrize("kind", ["pretask", "sft", "grpo"])
def test_every_stage_begins_the_next_steps_media(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is begun when a step's rows are there is what the next one asks for."""
    stage = {
        "pretask": {"type": "pretask", "name": "see", "data": ["warm"], "max_steps": 2},
        "sft": small.SFT,
        "grpo": GRPO | {"data": ["prompts"], "gate": {"name": "none"}},
    }[kind]
    made = small.recipe(
        tmp_path, stages=[stage | {"per_device_train_batch_size": 4}], dataloader_num_workers=1
    )
    context = prepare(made, tmp_path, None)
    decoders = context.feed._decoders
    assert decoders is not None
    monkeypatch.setattr(ahead, "_by_any", lambda idle, ref: decode(ref, context.feed.limits))
    _, method = _method(context, made.stages[0])
    if isinstance(method, GRPO_):
        method.trainer = object()  # type: ignore[assignment]  # nothing is trained here
    asked: list[MediumRef] = []
    honest = decoders.decode

    def noted(ref: MediumRef) -> DecodedMedium:
        asked.append(ref)
        return honest(ref)

    decoders.decode = noted  # type: ignore[method-assign]
    method.collect(0.0, 1)
    coming = {*decoders._begun, *decoders._wanted}
    asked.clear()
    method.collect(0.0, 1)
    assert asked and set(asked) <= coming
    context.feed.close()
