"""Read a recipe from YAML with `key.sub=value` overrides, say everything that is wrong with it at once, and dump it.

The schema itself is `mmreason.schema`. Keys are closed: an unknown one is an error that names the nearest key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.nodes import MappingNode

from mmreason.complaints import explain, kind_of, nearest
from mmreason.mending import Mended, mend
from mmreason.names import unresolved_names
from mmreason.schema import Recipe, SourceConfig


class RecipeError(ValueError):
    """Everything that is wrong with a recipe; `problems` holds one line each."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        """`name` is the file or whatever else the recipe came from."""
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n".join([f"{name}: {count}", *(f"  - {p}" for p in self.problems)]))


class _Loader(yaml.SafeLoader):
    """safe_load that reads `1e-4` as a number (YAML 1.1 wants `1.0e-4`) and refuses a key given twice."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the parent's, with duplicate keys refused: the last one would win silently."""
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen and key != "<<":
                raise ValueError(
                    f"line {line}: key {key!r} was given before, on line {seen[key]}; keep one of them"
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe at `path`, apply `key.sub=value` overrides in order, and check all of it.

    An override's value is read as YAML. List items are addressed by index, stages also by name:
    `stages.grpo.learning_rate=1e-4`, `data.train.limit=100`, `stages.0.max_steps=5`.

    Raises: RecipeError (a ValueError) naming the file, every key that is wrong, what was got and what is allowed.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(str(path), [_missing_file(file)])
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(str(path), [f"not readable as YAML: {error}"]) from None
    return build_recipe(raw, overrides, name=str(path))


def build_recipe(raw: Any, overrides: Sequence[str] = (), *, name: str = "recipe") -> Recipe:
    """The same from a mapping that is already in memory; `name` appears in the messages."""
    if not isinstance(raw, dict):
        raise RecipeError(name, [f"a recipe is a mapping of keys; got {kind_of(raw)}"])
    tree = json.loads(json.dumps(raw, default=str))  # a private copy; a date becomes text
    problems = [p for p in (_apply(tree, text) for text in overrides) if p]
    try:
        # JSON mode: strict about types (no "8" for 8, no true for 1) and still a list for a pair.
        recipe = Recipe.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        problems += explain(wrong, tree)
        if all(e["loc"] for e in wrong):  # the check across keys did not run: run it on what there is
            problems += unresolved_names(tree)
        hidden = mend(tree).hidden  # not reached where a type is wrong
        problems += [p for p in dict.fromkeys(hidden) if p not in problems]
        raise RecipeError(name, problems) from None
    if problems:
        raise RecipeError(name, problems)
    return recipe


def sources_of(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, SourceConfig]:
    """The data sources that are right by themselves in a recipe that may be wrong elsewhere."""
    tree = _tree(path, overrides)
    sources = {}
    for name, entry in tree["data"].items() if isinstance(tree.get("data"), dict) else ():
        try:
            sources[name] = SourceConfig.model_validate_json(json.dumps(entry), strict=True)
        except ValidationError:  # named already by load_recipe
            continue
    return sources


def mended_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Mended:
    """What a wrong recipe is without its wrong keys, so that all that they do not touch can be checked."""
    return mend(_tree(path, overrides))


def _tree(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping of a recipe's file with its overrides, as far as it can be read; empty when it cannot."""
    if not Path(path).is_file():
        return {}
    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        return {}
    if not isinstance(raw, dict):
        return {}
    tree = json.loads(json.dumps(raw, default=str))
    for text in overrides:
        _apply(tree, text)
    return tree


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` of it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _missing_file(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f"no such file (and no folder {str(folder)!r})"
    near = nearest(file.name, [p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml")])
    return f"no such file in {str(folder)!r}{near}"


# ---- overrides -------------------------------------------------------------------------------------------------


def _apply(tree: dict[str, Any], text: str) -> str | None:
    """Set one override in place. Returns the problem, if there is one."""
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return f"override {text!r}: write key.sub=value"
    try:
        value = yaml.load(value_text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        return f"override {text!r}: the value is not YAML ({str(error).splitlines()[0]})"
    here: Any = tree
    for depth, part in enumerate(parts):
        at = ".".join(parts[:depth]) or "the recipe"
        last = depth == len(parts) - 1
        if isinstance(here, list):
            index = _index(here, part)
            if index is None:
                return f"override {text!r}: {at} has no item {part!r}; there are {_item_names(here)}"
            if last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            if last:
                here[part] = value
            elif here.get(part) is None:
                here[part] = {}
            here = here[part]
        else:
            return f"override {text!r}: {at} is {kind_of(here)}, so it has no key {part!r}"
    return None


def _index(items: list[Any], part: str) -> int | None:
    """The position that `part` addresses: an index, or the `name` of an item."""
    named = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == part]
    if named:
        return named[0]
    return int(part) if part.isdecimal() and int(part) < len(items) else None


def _item_names(items: list[Any]) -> str:
    names = [item["name"] for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
    return f"{', '.join(names)} (or an index below {len(items)})" if names else f"indices below {len(items)}"
