"""A wrong recipe is mended as far as can be, so that what its errors would hide is said in the same go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmreason.mending import mend
from mmreason.recipe import RecipeError, build_recipe
from mmreason.schema import Recipe
from mmreason.validate import validate_file
from tests.house.test_recipe import GOOD
from tests.house.test_validate import GRPO, MODEL, SFT, recipe, row


def good(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(GOOD.replace("1e-3", "0.001")) | changes  # as this project's reader takes it


def stages(**changes: Any) -> list[dict[str, Any]]:
    """The good recipe's stages, with other keys in the last."""
    first, last = good()["stages"]
    return [first, {key: value for key, value in (last | changes).items() if value != "-"}]


def mended(tree: dict[str, Any]) -> Recipe:
    before = json.dumps(tree)
    found = mend(tree)
    assert found.recipe is not None and json.dumps(tree) == before
    return found.recipe


def named(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree)
    return caught.value.problems


def test_wrong_keys_are_left_out_and_right_ones_kept() -> None:
    made = mended(
        good(seed="x", sed=1, stages=stages(beta="much", temperature=0.7, reward_funcs=["exact", 3]))
    )
    assert made.seed == 0 and made.stages[1].temperature == 0.7  # type: ignore[union-attr]
    assert made.stages[1].reward_funcs == ["exact"]  # type: ignore[union-attr]
    made = mended(good(model=good()["model"] | {"lora_target_modules": 3, "lora_r": 5}))
    assert made.model.assemble is not None and made.model.lora_r == 5


@pytest.mark.parametrize("wrong", [{"assemble": {"vision": {}}}, {"assemble": 3}, {}, 3, None])
def test_a_model_that_cannot_be_is_left_out_alone(wrong: Any) -> None:
    found = mend(good(model=wrong))
    assert found.recipe is not None and not found.model and found.hidden == ()
    assert [stage.name for stage in found.recipe.stages] == ["warm", "rl"]
    assert mend(good()).model


def test_a_stage_that_cannot_be_is_left_out_and_what_starts_from_it_stands() -> None:
    (stage,) = mended(good(stages=stages(data="-"))).stages
    assert stage.name == "warm"
    third = {"type": "sft", "name": "more", "data": ["train"], "init_from": "rl"}
    made = mended(good(stages=[*stages(data=["absent"]), third]))
    assert [stage.name for stage in made.stages] == ["warm", "more"] and made.stages[1].init_from is None
    made = mended(good(stages=[*stages(type=7), third, third]))
    assert [stage.name for stage in made.stages] == ["warm", "more"]
    assert [stage.name for stage in mended(good(stages=stages(name="-"))).stages] == ["warm", "1"]


def test_a_misspelt_type_is_taken_for_its_neighbour() -> None:
    made = mended(good(stages=stages(type="grop", temperature=0.7)))
    assert made.stages[1].type == "grpo" and made.stages[1].temperature == 0.7


def test_of_two_keys_that_exclude_each_other_one_is_left_out() -> None:
    data = {"train": {"world": "image", "path": "rows.jsonl"}, "held_out": {"world": "image"}}
    assert mended(good(data=data)).data["train"].world == "image"
    made = mended(good(stages=stages(reward_weights=[1.0])))
    assert made.stages[1].reward_funcs == ["exact", "format"]  # type: ignore[union-attr]


def test_nothing_is_left_where_there_are_no_stages_or_no_data() -> None:
    for tree in (good(stages=3), good(stages=[]), good(data=3), {}):
        assert mend(tree).recipe is None


def test_what_a_wrong_key_hides_is_said_with_it() -> None:
    """Checks of several keys run once their types are right."""
    wrong = stages(beta="much", reward_weights=[1.0], gate={"low": 0.9, "high": 0.1})
    found = named(good(sed=1, stages=wrong))
    assert [problem.split(":")[0] for problem in found] == [
        "stages.rl.beta",
        "stages.rl.gate",
        "sed",
        "stages.rl",
    ]
    assert "reward_weights has 1 entries for 2 reward_funcs" in found[-1]
    found = named(good(stages=stages(type="grop", beta="much", zz=1)))
    assert [problem.split(":")[0] for problem in found] == ["stages.rl", "stages.rl.beta", "stages.rl.zz"]


def test_what_is_left_out_is_no_new_mistake() -> None:
    """Weights that fitted the rewards fit no longer once these are left out; a stage that is gone is not missed."""
    found = named(good(stages=stages(reward_funcs=3, reward_weights=[1.0, 1.0, 2.0])))
    assert len(found) == 1 and found[0].startswith("stages.rl.reward_funcs: ")
    third = {"type": "sft", "name": "more", "data": ["train"], "init_from": "rl"}
    found = named(good(stages=[*stages(type="zzzzzz"), third]))
    assert len(found) == 1 and found[0].startswith("stages.rl: no stage type 'zzzzzz'")


def test_validate_checks_what_stands_behind_a_recipe_that_cannot_be(tmp_path: Path) -> None:
    """No `llm`, a misspelt type; and behind them rows, a medium, a reward and a gate that never opens."""
    rows = [row(), row(solution=""), row(images=["absent.png"])]
    first, last = SFT | {"type": "stf"}, GRPO | {"reward_funcs": ["exakt"], "num_generations": 2}
    wrong = recipe(
        tmp_path, rows, stages=[first, last | {"gate": {"name": "balanced", "low": 0.6, "high": 0.7}}]
    )
    wrong["model"] = {"assemble": {"vision": MODEL["assemble"]["vision"]}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(wrong))
    report = validate_file(path)
    for said in (
        "model.assemble.llm: this key is required",
        "stages.sft: no stage type 'stf'; did you mean 'sft'?",
        "did you mean 'exact'?",
        "stages.grpo.gate: ",
        "data.mine, row mine:2: solution",
        "data.mine, row mine:3: absent.png",
    ):
        assert sum(said in problem for problem in report.problems) == 1, (said, report.problems)
    assert len(report.problems) == 6
    assert any("once the model loads" in note for note in report.notes)
