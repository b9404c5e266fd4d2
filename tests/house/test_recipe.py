"""Recipes: overrides, everything wrong said at once with the nearest key, and the dump that loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.recipe import RecipeError, build_recipe, dump_recipe, load_recipe
from mmreason.schema import GRPOStage, Recipe, SFTStage

GOOD = """
output_dir: runs/x
model:
  assemble:
    vision: {model_type: siglip_vision_model, hidden_size: 32}
    llm: {model_type: qwen3, initializer_range: 1e-4}
data:
  train: {world: image, count: 40}
  held_out: {world: image, count: 20, split: test}
stages:
  - {type: sft, name: warm, data: [train], replay: {train: 0.5}, learning_rate: 1e-3, max_steps: 2}
  - type: grpo
    name: rl
    data: [train]
    per_device_train_batch_size: 4
    num_generations: 4
eval: {data: [held_out]}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_a_good_recipe_is_typed_and_its_stages_have_their_own_class(good: Path) -> None:
    recipe = load_recipe(good)
    assert isinstance(recipe, Recipe)
    assert [type(stage) for stage in recipe.stages] == [SFTStage, GRPOStage]
    assert recipe.stages[0].learning_rate == 1e-3


def test_yaml_floats_without_a_point_are_numbers_even_in_free_mappings(good: Path) -> None:
    recipe = load_recipe(good, ["model.assemble.vision.layer_norm_eps=1E-6", "stages.rl.learning_rate=2e-5"])
    assert recipe.model.assemble is not None and recipe.model.assemble.vision is not None
    assert recipe.model.assemble.llm["initializer_range"] == 1e-4
    assert recipe.model.assemble.vision["layer_norm_eps"] == 1e-6
    assert recipe.stages[1].learning_rate == 2e-5


def test_the_dump_loads_to_an_equal_recipe(good: Path, tmp_path: Path) -> None:
    recipe = load_recipe(good, ["data.train.difficulty=[0.1, 0.5]", "stages.rl.learning_rate=1e-7"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@pytest.mark.parametrize(
    "override, read",
    [
        ("seed=7", lambda r: r.seed == 7),
        ("stages.rl.learning_rate=1e-4", lambda r: r.stages[1].learning_rate == 1e-4),
        ("stages.0.max_steps=5", lambda r: r.stages[0].max_steps == 5),
        ("data.held_out.limit=3", lambda r: r.data["held_out"].limit == 3),
        ("data.extra={path: rows.jsonl}", lambda r: r.data["extra"].path == "rows.jsonl"),
        ("data.more.path=more.jsonl", lambda r: r.data["more"].path == "more.jsonl"),
        ("stages.rl.gate.name=balanced", lambda r: r.stages[1].gate.name == "balanced"),
        ("stages.rl.reward_funcs=[exact]", lambda r: r.stages[1].reward_funcs == ["exact"]),
        ("stages.rl.data.0=held_out", lambda r: r.stages[1].data == ["held_out"]),
        ("system_prompt=a=b", lambda r: r.system_prompt == "a=b"),
        ("stages.0.max_steps=null", lambda r: r.stages[0].num_train_epochs == 1.0),
    ],
)
def test_overrides(good: Path, override: str, read) -> None:
    assert read(load_recipe(good, [override]))


def test_later_overrides_win(good: Path) -> None:
    assert load_recipe(good, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override, said",
    [
        ("data.mine.limitt=1", ["data.mine.limitt: unknown key; did you mean 'limit'?", "allowed: path,"]),
        ("sed=1", ["sed: unknown key; did you mean 'seed'?", "allowed: output_dir, seed, model"]),
        ("deepspeed=zero4", ["deepspeed:", "'zero4'", "allowed are zero0, zero1", "PATH.json"]),
        ("stages.rl.use_vllm=true", ["stages.rl.use_vllm: here it is `rollout: {engine: vllm"]),
        ("stages.rl.tools=[zoom]", ["stages.rl.tools: this version has no tools for a model to call"]),
        ("stages.rl.num_generation=4", ["stages.rl.num_generation: unknown key", "'num_generations'"]),
        ("model.assemble.image_sise=3", ["model.assemble.image_sise: unknown key", "'image_size'"]),
        ("stages.rl.gate.lo=0.1", ["stages.rl.gate.lo: unknown key", "'low'", "allowed: name, low, high"]),
        (
            "stages.warm.max_steps=3.5",
            ["stages.warm.max_steps: should be a valid integer; got 3.5 (a number)"],
        ),
        ("stages.warm.max_steps='3'", ['stages.warm.max_steps: should be a valid integer; got "3" (text)']),
        ("seed=true", ["seed: should be a valid integer; got true (true/false)"]),
        ("stages.rl.loss_type=dappo", ["stages.rl.loss_type", "'dapo'", "did you mean 'dapo'?"]),
        ("stages.0.type=grop", ["stages.warm: no stage type 'grop'; did you mean 'grpo'?"]),
        (
            "stages.warm.data=[trian]",
            ["stages.warm.data: no data source 'trian'; there are ['held_out', 'train']"],
        ),
        ("stages.warm.init_from=rl", ["stages.warm.init_from: 'rl' is not an earlier stage"]),
        ("stages.rl.name=warm", ["stages.warm: a stage of this name comes before"]),
        ("eval.data=[x]", ["eval.data: no data source 'x'"]),
        ("data.train.path=x.jsonl", ["data.train: give exactly one of path and world"]),
        ("stages.rl.reward_weights=[1]", ["reward_weights has 1 entries for 2 reward_funcs"]),
        ("stages.rl.learning_rate=.nan", ["stages.rl.learning_rate"]),
        ("model.lora_target_modules=3", ["model.lora_target_modules", "list", "'all-linear'"]),
        ("output_dir=null", ["output_dir: should be a valid string; got null"]),
        ("seed", ["override 'seed': write key.sub=value"]),
        ("=3", ["write key.sub=value"]),
        ("stages.zz.seed=1", ["stages has no item 'zz'; there are warm, rl"]),
        ("stages.7.seed=1", ["stages has no item '7'"]),
        ("seed.x=1", ['seed: should be a valid integer; got {"x": 1} (a mapping)']),
        ("output_dir.x=1", ["output_dir is text, so it has no key 'x'"]),
        ("seed=[1", ["the value is not YAML"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(good: Path, override: str, said: list[str]) -> None:
    text = "\n".join(problems(good, override))
    for words in said:
        assert words in text


def test_all_problems_are_reported_at_once(good: Path) -> None:
    found = problems(
        good, "sed=1", "stages.rl.beta=much", "eval.data=[x]", "stages.warm.data=[y]", "zz", "data.q={}"
    )
    assert len(found) == 6, found


def test_a_missing_required_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("output_dir: x\nstages: []\ndata: {}\n")
    text = "\n".join(problems(path))
    assert "model: this key is required" in text and "stages: " in text


def test_a_missing_file_names_its_nearest_neighbour(good: Path) -> None:
    assert "did you mean 'good.yaml'?" in problems(good.with_name("god.yaml"))[0]
    assert "no folder" in problems(good.parent / "nowhere" / "r.yaml")[0]


@pytest.mark.parametrize(
    "text, said", [("a: [1", "not readable as YAML"), ("- 1", "a recipe is a mapping"), ("", "got null")]
)
def test_what_is_not_a_recipe_at_all(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert said in problems(path)[0]


def test_a_key_given_twice_is_refused(good: Path) -> None:
    good.write_text(GOOD + "seed: 1\nseed: 2\n")
    assert "'seed' was given before" in problems(good)[0]


def test_overrides_leave_the_given_mapping_as_it_was() -> None:
    stage: dict[str, Any] = {"type": "sft", "name": "s", "data": ["d"]}
    raw = {
        "output_dir": "x",
        "model": {"model_name_or_path": "m"},
        "data": {"d": {"path": "p"}},
        "stages": [stage],
    }
    assert build_recipe(raw, ["stages.s.max_steps=3"]).stages[0].max_steps == 3
    assert "max_steps" not in stage


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["stages.rl.name=../out"], "stages.../out: '../out' names files of the run"),
        (["data.a/b={path: rows.jsonl}"], "data.a/b: 'a/b' names files of the run"),
        (["stages.warm.name=before"], "stages.before: eval.json calls the measurement before training so"),
        (["stages.0.branch=true", "stages.1.branch=true"], "stages: every stage is a branch"),
        (["stages.warm.replay={train: 0.5, held_out: 0.5}"], "stages.warm: replay: shares sum to 1"),
        (["stages.rl.gate={low: 0.9, high: 0.1}"], "stages.rl.gate: low=0.9 is above high=0.1"),
        (["stages.warm.time_of=rl"], "stages.warm: give one of max_steps and time_of"),
    ],
)
def test_what_would_fail_late_is_said_at_once(good: Path, overrides: list[str], said: str) -> None:
    found = problems(good, *overrides)
    assert any(p.startswith(said) for p in found), found
