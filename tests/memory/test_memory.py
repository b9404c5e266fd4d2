"""Predicted memory: held against what training really takes, and its parts against hand-computed ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mmreason.bench.work import Shape, checkpoint, grpo_recipe, rows
from mmreason.memory import LiveBytes, Memory, Remedy, Rows, remedies
from mmreason.memory.spread import Spread, spread_of
from mmreason.recipe import load_recipe
from mmreason.schema import Recipe
from mmreason.types import Rendered
from mmreason.validate import Room, validate

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 0.2


def debug(out: Path, stage: str, **changes: Any) -> Recipe:
    """One stage of recipes/debug.yaml by itself, some steps of it, without evaluation."""
    tree = json.loads(load_recipe(ROOT / "recipes" / "debug.yaml").model_dump_json())
    (chosen,) = [s for s in tree["stages"] if s["name"] == stage]
    chosen |= {"evaluate": False, "max_steps": 2, "num_train_epochs": None} | changes.pop("of_stage", {})
    if stage == "grpo":
        chosen["gate"] = {
            "name": "none"
        }  # an untrained model answers no question, so that none would be admitted
    tree |= {"output_dir": str(out / "run"), "stages": [chosen], "num_threads": 1, **changes}
    tree["data"] = {name: source | {"count": 48} for name, source in tree["data"].items()}
    tree["eval"] = {"data": []}
    return Recipe.model_validate(tree)


def measured(recipe: Recipe, folder: Path) -> dict[str, int]:
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "tests.memory.measured", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def predicted(recipe: Recipe, room: Room | None = None) -> Memory:
    report = validate(recipe, room=room)
    assert room is not None or report.problems == []
    return report.memory[recipe.stages[0].name]


def holds(recipe: Recipe, folder: Path) -> None:
    """The prediction is what the allocator's book says; so it is by our own count of live tensors."""
    took = measured(recipe, folder)
    assert took["live"] == pytest.approx(took["allocated"], rel=0.01)
    assert predicted(recipe).total == pytest.approx(took["allocated"], rel=WITHIN)


def test_the_tiny_model_takes_what_was_predicted(tmp_path: Path) -> None:
    holds(debug(tmp_path, "grpo"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sft", {}),
        ("sft", {"shared_prefix": "off"}),
        ("sft", {"bf16": True, "of_stage": {"max_tokens_per_micro_batch": 512}}),
        ("sft", {"of_stage": {"gradient_checkpointing": True}}),
        ("grpo", {"shared_prefix": "off", "of_stage": {"beta": 0.0, "token_weight": {"name": "none"}}}),
        ("grpo", {"bf16": True, "of_stage": {"max_completion_length": 200}}),
    ],
    ids=["sft", "padded", "bf16 in micro-batches", "recomputed", "grpo padded", "grpo bf16"],
)
def test_so_do_other_ways_to_train_it(stage: str, changes: dict[str, Any], tmp_path: Path) -> None:
    holds(debug(tmp_path, stage, **changes), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 15e9, reason="needs 15 GB of free memory")
@pytest.mark.timeout(900)
def test_half_a_billion_weights_take_what_was_predicted(tmp_path: Path) -> None:
    """The layers of a 0.5B Qwen2.5 with its whole vocabulary, all of it trained with AdamW in float32."""
    shape = Shape(896, 24, 14, 2, 4864, 151936, vision_depth=2, image_tokens=64, new_tokens=16, group=2)
    checkpoint(shape, tmp_path / "model")
    rows(shape, tmp_path)
    recipe = grpo_recipe(shape, tmp_path, "auto")
    recipe.stages[0].max_steps = 2
    memory = predicted(recipe)
    took = measured(recipe, tmp_path)
    assert memory.total == pytest.approx(took["allocated"], rel=WITHIN)
    assert memory.total == pytest.approx(took["resident"], rel=WITHIN)


def test_live_bytes_are_those_of_storages() -> None:
    with LiveBytes() as live:
        one = torch.zeros(100)
        view = one[10:].view(9, 10)
        assert live.now == live.peak == 400
        other = view * 2
        assert live.now == 760
        del other
        assert live.now == 400 and live.peak == 760
        live.again()
        assert live.peak == 400


def test_a_batch_is_as_long_as_the_largest_of_many() -> None:
    ids = torch.zeros(40, dtype=torch.long)
    longest = Rendered("a", ids, ids.to(torch.int8), ids.bool(), ids)
    assert Rows(longest, (40, 40)).alike(16) == 16
    # 16 rows of 25 on the average, and 2.5 times the deviation of their sum, 15 x 4: 550 tokens, or 13.75 rows of 40
    assert Rows(longest, (10, 40)).alike(16) == 14
    assert Rows(longest, (10, 40)).alike(1) == 1


def test_parts_are_those_of_the_model(tmp_path: Path) -> None:
    recipe = debug(tmp_path, "grpo")
    memory = predicted(recipe)
    assert memory.weights == memory.reference
    assert 0.99 * memory.weights < memory.gradients < memory.weights  # of buffers there are none
    assert memory.optimizer == 2 * memory.gradients
    prompt = validate(recipe).sources["prompts"]["prompt"]["max"]
    # 4 prompts once, each forked into 4 rows of 32; 2 layers, 2 heads of 32, keys and values
    assert memory.kv_cache == (4 * prompt + 16 * 32) * 2 * 2 * 2 * 32 * 4
    plain = predicted(debug(tmp_path, "grpo", shared_prefix="off"))
    # one layer's keys are there twice while they grow
    assert plain.kv_cache == 16 * (prompt + 32) * (2 * 2 + 1) * 2 * 32 * 4
    assert memory.moments["training"] < plain.moments["training"]


def test_activations_elsewhere_are_counted_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaves the step is at least what it is smaller by; the rest was never alive at its largest moment."""
    monkeypatch.setattr("mmreason.train.offload.SMALL", 1)
    here = predicted(debug(tmp_path, "sft"))
    there = predicted(debug(tmp_path, "sft", of_stage={"activation_offload": True}))
    assert here.offloaded == 0 and there.weights == here.weights
    spared = here.activations - there.activations
    assert 0.3 * here.activations < spared <= there.offloaded


def test_what_is_spread_is_hand_computed(tmp_path: Path) -> None:
    everything = [torch.zeros(1000), torch.zeros(200)]
    recipe = debug(tmp_path, "sft")

    def told(deepspeed: str | None, world: int) -> Spread:
        other = recipe.model_copy(update={"deepspeed": deepspeed})
        return spread_of(other, other.stages[0], everything, everything[:1], world)

    assert told(None, 1) == Spread(False, 4800, 4800, 4000, 8000, 0)
    assert told(None, 2) == Spread(True, 4800, 4800, 4000, 8000, 4000)
    assert told("zero1", 2) == Spread(True, 4800, 4800, 4000, 6000, 0)
    assert told("zero2", 4) == Spread(True, 4800, 4800, 1000, 3000, 2_000_000_000)
    assert told("zero2_offload", 4) == Spread(True, 4800, 4800, 1000, 0, 2_000_000_000, 3000)
    three = told("zero3", 4)
    assert (three.weights, three.whole, three.gradients, three.optimizer) == (1200 + 4800, 6000, 1000, 2000)


@pytest.mark.slow
def test_rollouts_module_by_module_hold_no_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was gathered, ZeRO-3 keeps LIVE numbers; rows that share no prompt are the same in both."""
    monkeypatch.setattr("mmreason.memory.spread.LIVE", 1000)

    def told(gather: str) -> Memory:
        keys = {"deepspeed": "zero3", "shared_prefix": "off", "rollout": {"gather": gather}}
        return predicted(debug(tmp_path, "grpo", **keys), Room(10**12, on_cpu=True, processes=8))

    whole, apart = told("whole").moments["rollout"], told("modules").moments["rollout"]
    assert whole - apart == predicted(debug(tmp_path, "grpo")).weights - 4 * 1000


@pytest.mark.slow
def test_auto_is_predicted_by_the_way_that_it_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmreason.memory.spread.LIVE", 1000)

    def told(gather: str, room: int) -> Memory:
        keys = {"deepspeed": "zero3", "shared_prefix": "off", "rollout": {"gather": gather}}
        recipe = debug(tmp_path, "grpo", **keys)
        return predicted(recipe, Room(room, on_cpu=False, processes=8))

    wide = 10**12
    whole, modules = told("whole", wide), told("modules", wide)
    assert modules.moments["rollout"] < whole.moments["rollout"] and whole != modules
    assert told("auto", wide) == whole
    assert (
        told("auto", whole.moments["rollout"] - 1) == modules
    )  # whole does not fit, and a run would not try


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_helps(tmp_path: Path) -> None:
    recipe = debug(tmp_path, "grpo")
    whole = predicted(recipe).total
    assert validate(recipe, room=Room(whole, on_cpu=False)).problems == []
    (problem,) = validate(recipe, room=Room(whole // 2, on_cpu=False)).problems
    assert "stages.grpo: needs" in problem and "in training" in problem
    assert "stages.grpo.gradient_checkpointing=true (then " in problem
    assert (
        "stages.grpo.max_completion_length=16 (then " in problem and "model.use_peft=true (then " in problem
    )
    # as many rows, in twice as many groups: what does not help is not told
    assert "num_generations" not in problem
    assert problem.index("(then ") < problem.index("optimizer=sgd")  # the most helpful first


def test_remedies_are_those_that_help_the_most_helpful_first(tmp_path: Path) -> None:
    recipe = debug(tmp_path, "sft")

    def told(other: Recipe, changed: Any) -> Memory:
        total = 100 - 10 * (changed.optimizer == "sgd") - 30 * changed.gradient_checkpointing
        total += 5 * (other.model.torch_dtype == "bfloat16")
        return Memory(**dict.fromkeys(Memory.PARTS, 0), moments={"training": total})

    assert remedies(recipe, recipe.stages[0], 1, told) == [
        Remedy("stages.sft.gradient_checkpointing=true", 30, 70),
        Remedy("stages.sft.optimizer=sgd", 10, 90),
    ]
