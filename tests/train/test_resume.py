"""A run that was killed and resumed is, to the bit, the run that was never killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mmreason.model.encode_once import _Once
from mmreason.model.feature_cache import Made
from mmreason.recipe import load_recipe
from mmreason.schema import Recipe
from mmreason.train import loop
from mmreason.train.metrics import Metrics
from mmreason.train.run import train
from tests.train import small
from tests.train.killed import killed
from tests.train.pictures import break_picture, write_pictures

ROOT = Path(__file__).parents[2]
# small.recipe saves at steps 2, 4, 6 (end of SFT), 9, 12, 14 (end of GRPO); 9 lies between the two uses of a rollout
POINTS: dict[str, dict[str, Any]] = {
    "before the first checkpoint": {"step": 1},
    "in the middle of SFT": {"step": 5},
    "between two iterations over one rollout": {"step": 11},
    "while the checkpoint between two stages is written": {"file_of_save": (3, 4)},
    "while a checkpoint with a rollout in it is written": {"file_of_save": (4, 1)},
    "in the evaluation before training": {"evaluated": ("before", "answers")},
    "in the evaluation between two stages": {"evaluated": ("sft", "answers")},
    "between the two files of an evaluation": {"evaluated": ("sft", "rows")},
    "when an evaluation is stored": {"evaluated": ("sft", "block")},
    "in the last evaluation": {"evaluated": ("grpo", "answers")},
}


def test_the_small_run_has_every_kind_of_state(whole: Path) -> None:
    lines = small.metrics(whole)
    assert [line["step"] for line in lines] == list(range(1, 15))
    grpo = [line for line in lines if line["stage"] == "grpo"]
    assert all(line["frac_reward_zero_std"] < 1 and line["grad_norm"] > 0 for line in grpo)
    assert any(line["kl"] > 0 for line in grpo) and any(line["token_weight/mean"] > 1 for line in grpo)
    first, second = grpo[2], grpo[3]  # two uses of one rollout
    assert first["reward"] == second["reward"] and first["loss"] != second["loss"]
    assert not small.same_weights(whole / "stages" / "sft", whole / "stages" / "grpo")


@pytest.mark.parametrize("where", POINTS.values(), ids=POINTS.keys())
def test_killed_and_resumed(
    where: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.recipe(tmp_path / "run")
    killed(recipe.model_dump(), **where)
    assert not (tmp_path / "run" / "model").exists()
    small.without_probe(monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")


def test_killed_again_and_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try gets a few steps further; metrics of steps that are done again are not written twice."""
    recipe = small.recipe(tmp_path / "run")
    for step in (4, 8, 10):
        killed(recipe.model_dump(), step=step)
    small.without_probe(monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")


def test_a_finished_run_is_left_as_it_is(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    train(small.moved(whole, tmp_path / "run"))
    small.assert_same_run(whole, tmp_path / "run")


def test_an_exception_is_resumed_like_a_kill(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process goes on: nothing of the first try may linger in it."""
    small.without_probe(monkeypatch)
    recipe = small.recipe(tmp_path / "run")
    stopped_at(10, recipe, monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")


def stopped_at(step: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the metrics of `step` are to be written."""
    write = Metrics.write

    def failing(self: Metrics, number: int, *given: Any) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return write(self, number, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metrics, "write", failing)
        train(recipe)


def beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features depend, much more than in truth, on how many media were encoded together."""
    encoded = _Once._encoded

    def beside(self: _Once, call: Any, chosen: Any) -> list[Made]:
        more = 1e-2 * len(chosen)
        return [
            Made(made.kind, {name: [x + more for x in parts] for name, parts in made.fields.items()})
            for made in encoded(self, call, chosen)
        ]

    monkeypatch.setattr(_Once, "_encoded", beside)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_frozen_encoders_resume_to_the_bit(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where features depend, as here much more than in truth, on how many pictures were encoded together."""
    small.without_probe(monkeypatch)
    beside_others(monkeypatch)
    shared = {"freeze": ["vision"], "max_steps": 4, "save_steps": 2}
    chosen = {"sft": small.SFT, "grpo": small.GRPO | {"gate": {"name": "none"}}}[stage] | shared
    train(small.recipe(tmp_path / "whole", stages=[chosen]))
    recipe = small.recipe(tmp_path / "run", stages=[chosen])
    stopped_at(3, recipe, monkeypatch)
    train(recipe)
    small.assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("begins", [True, False])
def test_a_reference_and_an_unreadable_row_resume_to_the_bit(
    begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two uses of a rollout and before the next one, where a row's picture cannot be read.

    Were what is known not forgotten at checkpoints (`begins`), features made beside others would tell.
    """
    small.without_probe(monkeypatch)
    beside_others(monkeypatch)
    stage = small.GRPO | {
        "data": ["rows"],
        "freeze": ["vision"],
        "gate": {"name": "none"},
        "max_steps": 6,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
    }

    def made(name: str) -> Recipe:
        rows = write_pictures(tmp_path / f"rows-{name}")
        break_picture(rows.parent / "4.png")
        data = {"rows": {"path": str(rows)}}
        bad = {"max_bad_fraction": 0.2, "eval": {"data": []}}
        return small.recipe(tmp_path / name, data=data, stages=[stage], **bad)

    if not begins:
        monkeypatch.setattr(loop, "begin_anew", lambda cache: None)
    train(made("whole"))
    assert all(line["kl"] != 0 for line in small.metrics(tmp_path / "whole")[1:])
    recipe = made("run")
    for step in (2, 4, 5):
        stopped_at(step, recipe, monkeypatch)
    train(recipe)
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "row-4"
    if begins:
        assert small.metrics(tmp_path / "whole") == small.metrics(tmp_path / "run")
    assert small.same_weights(tmp_path / "whole" / "model", tmp_path / "run" / "model") is begins


def test_lora_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters, their optimizer and their dropout's draws."""
    small.without_probe(monkeypatch)
    model = {"assemble": small.ASSEMBLE, "use_peft": True, "lora_r": 2, "lora_dropout": 0.2}
    stages = [small.SFT, small.GRPO | {"max_steps": 4, "save_steps": 1}]
    whole = small.recipe(tmp_path / "whole", model=model, stages=stages)
    train(whole)
    recipe = small.recipe(tmp_path / "run", model=model, stages=stages)
    killed(recipe.model_dump(), step=5)
    killed(recipe.model_dump(), step=8)
    train(recipe)
    small.assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert any("lora" in name for name in small.weights(tmp_path / "run" / "stages" / "sft"))


# --- the shipped recipe, killed from outside


def start(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmreason.cli", "train", str(ROOT / "recipes/debug.yaml")]
    return subprocess.Popen(
        [*command, f"output_dir={out}", "num_threads=1"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(out: Path) -> None:
    assert start(out).wait() == 0


def kill_when(out: Path, ready: Any) -> None:
    process = start(out)
    while not ready(out) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def lines_reach(count: int) -> Any:
    def ready(out: Path) -> bool:
        path = out / "metrics.jsonl"
        return path.exists() and len(path.read_text().splitlines()) >= count

    return ready


def stage_ends(out: Path) -> bool:
    return (out / "stages" / "sft").exists() and any(out.glob(".checkpoint-*.writing"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_debug_recipe_killed_three_times(tmp_path: Path) -> None:
    """In the middle of SFT, while the checkpoint between the stages is written, in the middle of GRPO."""
    finish(tmp_path / "whole")
    sft = load_recipe(ROOT / "recipes/debug.yaml").stages[0].max_steps
    assert sft is not None
    for name, ready in (
        ("sft", lines_reach(sft // 2 + 7)),
        ("boundary", stage_ends),
        ("grpo", lines_reach(sft + 13)),
    ):
        kill_when(tmp_path / name, ready)
        finish(tmp_path / name)
        small.assert_same_run(tmp_path / "whole", tmp_path / name)
    kept = json.loads((tmp_path / "grpo" / "eval.json").read_text())
    assert list(kept) == ["before", "sft", "grpo"]
