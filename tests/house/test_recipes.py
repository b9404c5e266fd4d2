"""Every recipe in `recipes/` parses against the schema and begins with its command, hardware, time and expectation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmreason.recipe import load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"debug", "quickstart", "own_data"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert Path(recipe.output_dir) == Path("runs") / path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipe_begins_with_its_claim(path: Path) -> None:
    comment = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert comment is not None
    for word in (f"mmreason train recipes/{path.name}", "Hardware:", "Time:", "Expect:"):
        assert word in comment.group(), f"the top comment of {path.name} lacks {word!r}"
