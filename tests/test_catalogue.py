"""Every line of the catalogue can be written into a recipe, and every switch of a recipe is in the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mmreason.catalogue import METHODS
from mmreason.recipe import load_recipe
from mmreason.rewards import REWARDS
from mmreason.schema import STAGES

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("name", METHODS)
def test_the_key_is_accepted_by_a_stage(name: str):
    method = METHODS[name]
    key = yaml.safe_load(method.key)
    accepted = []
    for kind, stage in STAGES.items():
        if set(key) <= set(stage.model_fields) and key.get("type", kind) == kind:
            accepted.append(stage(**{"name": "s", "data": ["d"], "type": kind, **key}))
    assert accepted, f"no stage takes {method.key!r}"
    assert method.slots and method.summary.endswith(".")
    assert not method.paper or re.fullmatch(r"\d{4}\.\d{5}", method.paper)


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_that_is_named_uses_the_method(name: str):
    method = METHODS[name]
    stages = [stage.model_dump() for stage in load_recipe(RECIPES / method.recipe).stages]
    ((key, value),) = yaml.safe_load(method.key).items()
    assert re.search(
        rf"\b{key}:", (RECIPES / method.recipe).read_text()
    )  # in so many words, not as a default
    used = [stage[key] for stage in stages if key in stage]
    if isinstance(value, dict):
        assert value["name"] in [choice["name"] for choice in used]
    elif isinstance(value, list):
        assert any(set(value) <= set(choice) for choice in used)
    elif isinstance(value, float):
        assert any(used)  # a number of its own; 0 or null would switch the method off
    else:
        assert value in used


def test_every_reward_but_the_control_is_listed():
    keys = [yaml.safe_load(m.key) for m in METHODS.values()]
    listed = {name for key in keys for name in key.get("reward_funcs", [])}
    assert listed == set(REWARDS) - {"constant"}
