"""Checkpoints: torn ones are passed over, foreign ones refused, and every owner's state survives the trip."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from mmreason.curriculum import make_gate, make_sampler
from mmreason.data.loader import Loader
from mmreason.recipe import dump_recipe
from mmreason.schema import GateConfig, SamplerConfig
from mmreason.train.checkpoint import (
    damage,
    load_state,
    newest_complete,
    rows_from_tensors,
    rows_to_tensors,
)
from mmreason.train.distributed import make_backend
from mmreason.train.folder import open_run
from mmreason.train.run import train
from mmreason.types import Sample
from tests.rewards.build import group, sample, trajectory
from tests.train import small
from tests.train.killed import killed
from tests.train.rows import grpo_rows

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed at step 13: checkpoints 9 and 12 are there, 14 is still to come."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    killed(small.recipe(out).model_dump(), step=13)
    return out


# --- torn checkpoints


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def torn_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


def truncated(folder: Path) -> None:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])


def flipped_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def lost(folder: Path) -> None:
    (folder / "rank_0.json").unlink()


DAMAGES = [no_manifest, torn_manifest, empty_manifest, truncated, flipped_bit, lost]


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda f: f.__name__)
def test_a_torn_checkpoint_is_passed_over_by_name(
    hurt: Damage, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-12"
    assert newest_complete(tmp_path / "run") == newest
    hurt(newest)
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path / "run") == tmp_path / "run" / "checkpoint-9"
    (record,) = caplog.records
    assert "checkpoint-12" in record.getMessage() and "is not used" in record.getMessage()


def test_a_run_goes_on_from_the_checkpoint_before_a_torn_one(
    whole: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.moved(stopped, tmp_path / "run")
    flipped_bit(tmp_path / "run" / "checkpoint-12")
    small.without_probe(monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")
    assert damage(tmp_path / "run" / "checkpoint-14") is None


def test_a_run_without_any_whole_checkpoint_begins_again(
    whole: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.moved(stopped, tmp_path / "run")
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        no_manifest(folder)
    small.without_probe(monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")


def test_a_metrics_line_torn_by_the_kill_is_written_again(
    whole: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small.moved(stopped, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "stage": "grpo", "lo')
    small.without_probe(monkeypatch)
    train(recipe)
    small.assert_same_run(whole, tmp_path / "run")


# --- which checkpoints stay


def test_a_damaged_checkpoint_of_a_higher_number_never_displaces_a_whole_one(
    stopped: Path, tmp_path: Path
) -> None:
    recipe = small.moved(stopped, tmp_path / "run").model_copy(update={"save_total_limit": 1})
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        flipped_bit(folder)
    killed(recipe.model_dump(), step=5)  # from the beginning, with a checkpoint at 2 and one at 4
    assert newest_complete(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_as_many_checkpoints_stay_as_the_recipe_says(whole: Path) -> None:
    assert sorted(p.name for p in whole.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-14"]
    assert not list(whole.glob(".checkpoint-*"))


# --- another recipe on the same folder


def test_another_recipe_is_refused_with_what_differs(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    stages = [small.SFT | {"learning_rate": 0.5}, small.GRPO]
    with pytest.raises(ValueError) as caught:
        train(small.recipe(tmp_path / "run", stages=stages, seed=3))
    message = str(caught.value)
    assert "stages.0.learning_rate: was 0.002, now 0.5" in message and "seed: was 0, now 3" in message
    assert "take another output_dir" in message and "beta" not in message


def test_a_run_that_must_not_be_resumed_is_not(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(ValueError, match="resume_from_checkpoint is false"):
        train(small.recipe(tmp_path / "run", resume_from_checkpoint=False))


def test_keys_that_change_no_number_may_change(whole: Path, tmp_path: Path, monkeypatch: Any) -> None:
    small.without_probe(monkeypatch)
    train(small.moved(whole, tmp_path / "run").model_copy(update={"save_total_limit": 1}))
    small.assert_same_run(whole, tmp_path / "run")


def test_threads_that_a_recipe_names_may_not_change(whole: Path, tmp_path: Path) -> None:
    """`whole` was made with num_threads: 1, which is what this process has as its own choice too."""
    shutil.copytree(whole, tmp_path / "run")
    for threads in (2, None):
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="num_threads: was 1, now 2"):
            train(small.recipe(tmp_path / "run", num_threads=threads))
    torch.set_num_threads(1)
    open_run(
        small.recipe(tmp_path / "run", num_threads=None), tmp_path / "run"
    )  # the same number, named or not


def test_threads_that_no_recipe_names_are_recorded_and_warned_about(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = small.recipe(tmp_path / "run", num_threads=None)
    open_run(recipe, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-2").mkdir()
    open_run(recipe, tmp_path / "run")
    assert not caplog.records
    torch.set_num_threads(2)
    open_run(
        recipe.model_copy(update={"num_threads": 1}), tmp_path / "run"
    )  # pinned to what it was begun with
    assert not caplog.records
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    open_run(recipe, tmp_path / "run")
    assert "was begun with 1 threads and goes on with 2" in caplog.text and "set num_threads=1" in caplog.text


def test_what_another_recipe_measured_is_not_taken_over(tmp_path: Path, monkeypatch: Any) -> None:
    """A run killed before its first checkpoint leaves an evaluation behind; with another seed it is another model's."""
    killed(small.recipe(tmp_path / "run").model_dump(), step=1)
    stale = small.evaluation(tmp_path / "run")
    stages = [small.SFT | {"max_steps": 1, "evaluate": False}]
    small.without_probe(monkeypatch)
    for name in ("run", "fresh"):
        train(small.recipe(tmp_path / name, stages=stages, seed=9))
    assert stale.keys() == {"before"}
    rows = [(tmp_path / name / "eval" / "before.jsonl").read_text() for name in ("run", "fresh")]
    assert rows[0] == rows[1]
    assert small.metrics(tmp_path / "run") == small.metrics(tmp_path / "fresh")


# --- states


def test_random_state_and_rows_come_back_to_the_bit(stopped: Path) -> None:
    backend = make_backend("plain")
    load_state(stopped / "checkpoint-12", backend)
    first = (torch.rand(3).tolist(), random.random(), np.random.random(3).tolist())
    shared, local, rows = load_state(stopped / "checkpoint-12", backend)
    assert (torch.rand(3).tolist(), random.random(), np.random.random(3).tolist()) == first
    assert shared["step"] == 6 and shared["stage"] == 1 and not shared["done"]
    assert rows == [] and local["method"]["uses_left"] == 0
    _, local, rows = load_state(stopped / "checkpoint-9", backend)
    assert local["method"]["uses_left"] == 1 and len(rows) == 6
    assert all(row.old_logprobs is not None and row.ref_logprobs is not None for row in rows)


def test_another_number_of_processes_shares_the_rows(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Six rows of one process, two groups of three: one group for each of two processes, none for a third."""
    backend = make_backend("plain")
    whole = load_state(stopped / "checkpoint-9", backend)
    assert not caplog.records
    drawn = set()
    for world, owned in ((2, [[0], [1]]), (3, [[0], [1], []])):
        backend.world_size = world
        for backend.rank, groups in enumerate(owned):
            shared, local, rows = load_state(stopped / "checkpoint-9", backend)
            assert (shared, local["method"]) == (whole[0], whole[1]["method"])
            wanted = [row for row in whole[2] if row.group in groups]
            assert len(rows) == 3 * len(groups) and all(row.group == 0 for row in rows)
            assert all(torch.equal(r.rendered.ids, w.rendered.ids) for r, w in zip(rows, wanted, strict=True))
            drawn.add((random.random(), torch.rand(1).item()))
    assert len(drawn) == 3  # each draws by itself, whatever the others are
    assert "was written by 1 process(es) and goes on in 2" in caplog.text


def test_rows_of_other_processes_come_together(stopped: Path, tmp_path: Path) -> None:
    """As if two processes had written the checkpoint: their groups of the same number are not one."""
    folder = shutil.copytree(stopped / "checkpoint-9", tmp_path / "checkpoint-9")
    for kind in ("json", "safetensors"):
        shutil.copy(folder / f"rank_0.{kind}", folder / f"rank_1.{kind}")
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"world_size": 2}))
    rows = load_state(folder, make_backend("plain"))[2]
    assert [row.group for row in rows] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_another_number_of_processes_learns_from_as_many_rows(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process with 4 rows a step is two with 2, and not two with 4."""
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = small.recipe(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match=r"(?s)stages.0.rows of a step: was 4, now 8.*it had 1 process\(es\) and this start has 2: choose",
    ):
        open_run(recipe, tmp_path / "run")
    halves = [
        stage.model_copy(update={"per_device_train_batch_size": stage.per_device_train_batch_size // 2})
        for stage in recipe.stages
    ]
    open_run(recipe.model_copy(update={"stages": halves}), tmp_path / "run")


def test_buffered_rows_round_trip(assembled_folder: Path) -> None:
    rows = grpo_rows(AutoProcessor.from_pretrained(assembled_folder), 4)
    rows[0] = replace(rows[0], old_logprobs=None)
    rows[1] = replace(rows[1], sampling_logprobs=torch.rand(len(rows[1])), beside=True)
    tensors, described = rows_to_tensors(rows)
    back = rows_from_tensors(tensors, json.loads(json.dumps(described)))
    for row, twin in zip(rows, back, strict=True):
        assert (row.count, row.group, row.beside, row.rendered.sample_id) == (
            twin.count,
            twin.group,
            twin.beside,
            twin.rendered.sample_id,
        )
        for name in ("aggregation", "ce", "rl", "kl", "old_logprobs", "ref_logprobs", "sampling_logprobs"):
            assert_same(getattr(row, name), getattr(twin, name))
        for name in ("ids", "roles", "sampled", "token_types"):
            assert_same(getattr(row.rendered, name), getattr(twin.rendered, name))
        assert row.rendered.media.keys() == twin.rendered.media.keys()
        for name, tensor in row.rendered.media.items():
            assert_same(tensor, twin.rendered.media[name])


def assert_same(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert torch.equal(one, other) and one.dtype == other.dtype


def pool(count: int, source: str = "s") -> list[Sample]:
    return [sample("red", id=f"{source}:{i}", source=source, difficulty=i / count) for i in range(count)]


@pytest.mark.parametrize("at", [0, 3, 7, 11, 23])
def test_the_loader_goes_on_where_it_was(at: int) -> None:
    def make() -> Loader:
        return Loader({"a": pool(7, "a"), "b": pool(3, "b")}, ["a"], {"b": 0.3}, seed=5)

    one, other = make(), make()
    one.next(at)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [s.id for s in one.next(30)] == [s.id for s in other.next(30)]
    assert one.epoch == other.epoch


@pytest.mark.parametrize("name", ["uniform", "easy_to_hard"])
def test_the_sampler_goes_on_where_it_was(name: Any) -> None:
    config = SamplerConfig(name=name, window=0.4)
    one, other = (make_sampler(config, pool(10), 6, 1) for _ in range(2))
    for step in range(3):
        one.next(3, step=step)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(3, 9):
        assert [s.id for s in one.next(3, step=step)] == [s.id for s in other.next(3, step=step)]
        assert one.metrics() == other.metrics()


def test_the_gate_goes_on_counting() -> None:
    config = GateConfig(name="balanced", low=0.2, high=0.8)
    one, other = make_gate(config), make_gate(config)
    groups = [
        group(sample("red"), [trajectory(accuracy=a) for a in values])
        for values in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (None, None))
    ]
    assert [one.admit(g) for g in groups] == [True, False, False, True]
    one.observe(groups)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for gate in (one, other):
        gate.observe([groups[1]])
    assert one.metrics() == other.metrics() and one.metrics()["curriculum/dropped_easy"] == 2
