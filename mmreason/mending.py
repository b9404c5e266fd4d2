"""What a wrong recipe is without what is wrong in it, so that all the rest of it can be checked as well."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mmreason.complaints import explain
from mmreason.names import no_file_name
from mmreason.schema import STAGES, Recipe

ROUNDS = 20  # what is left out may bring more to light, so often at most
STAND_INS = {"output_dir": "runs/unnamed", "data": {}, "model": {"model_name_or_path": "unknown"}}


@dataclass(frozen=True)
class Mended:
    """A recipe without its wrong keys.

    Example: of one whose `model.assemble` has no `llm`: `Mended(recipe, model=False, hidden=())`.
    """

    recipe: Recipe | None  # None: too little is left for one
    model: bool  # whether the model in it is the user's own
    hidden: tuple[str, ...]  # problems that the wrong keys hid, one line each


def mend(tree: dict[str, Any]) -> Mended:
    """Leave out wrong keys, and stages or the model where they cannot be without a key; `tree` stays as it is.

    A stage whose type is misspelt is taken for the nearest type.
    """
    tree = json.loads(json.dumps(tree))
    gone, hidden = set[str](), list[str]()
    for turn in range(ROUNDS):
        try:
            recipe = Recipe.model_validate_json(json.dumps(tree), strict=True)
            return Mended(recipe, "model" not in gone, tuple(hidden))
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if turn:
            hidden += explain([e for e in errors if _is_news(e, gone)], tree)
        found = [(e, _steps(tree, e["loc"])) for e in errors]
        # the last first: what leaves a list moves only what stands behind it
        changed = [_without(tree, e, steps, gone) for e, steps in reversed(found)]
        if True not in changed:
            break
    return Mended(None, False, tuple(hidden))


def _is_news(e: Any, gone: set[str]) -> bool:
    """Whether an error is the user's own, and not there because something was left out."""
    if not e["loc"]:
        return False  # names: those of the whole recipe are reported as it was given
    if e["type"] == "missing":
        return e["loc"][-1] not in gone
    return not (e["type"] == "value_error" and _named(str(e["ctx"]["error"]), gone))


def _named(message: str, keys: Any) -> list[str]:
    """Those of `keys` that a message speaks of, in its order."""
    return [word for word in re.findall(r"\w+", message) if word in keys]


@dataclass(frozen=True)
class _Step:
    """One key on the way to an error, with what it held when the error was found."""

    holder: Any
    key: Any
    value: Any

    def there(self) -> bool:
        """Whether it still holds that."""
        if isinstance(self.holder, dict):
            return self.holder.get(self.key) is self.value
        return self.key < len(self.holder) and self.holder[self.key] is self.value


def _without(tree: dict[str, Any], e: Any, steps: list[_Step], gone: set[str]) -> bool:
    """Take what an error speaks of out of the tree, or put something in its place; False where neither can be done."""
    if not e["loc"]:
        return _settle_names(tree)
    if any(not step.there() for step in steps):
        return False  # it went with something else
    if e["type"] == "missing":
        return _stand_in(tree, steps, str(e["loc"][-1]), gone)
    holder, key, value = steps[-1].holder, steps[-1].key, steps[-1].value
    if e["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(str(e["ctx"]["tag"]), STAGES, n=1)
        if near:
            value["type"] = near[0]
            return True
    if e["type"] == "value_error" and isinstance(value, dict):
        blamed = _named(str(e["ctx"]["error"]), value)
        if blamed:
            holder, key = value, blamed[0]
    gone.add(str(key))
    del holder[key]
    return True


def _steps(tree: Any, loc: Sequence[int | str]) -> list[_Step]:
    """The keys of a pydantic location that the tree has, from its root; tags of unions are none."""
    steps: list[_Step] = []
    here = tree
    for part in loc:
        inside = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside or isinstance(here, dict) and part in here:
            steps.append(_Step(here, part, here[part]))
            here = here[part]
    return steps


def _stand_in(tree: dict[str, Any], steps: Sequence[_Step], key: str, gone: set[str]) -> bool:
    """Fill a missing key of the recipe itself, or a stage's name; else leave out the model or stage that lacks it."""
    if not steps or steps[0].key == "model":
        missing = "model" if steps else key
        if missing not in STAND_INS:
            return False
        gone.add(missing)
        tree[missing] = STAND_INS[missing]
    elif steps[0].key == "stages" and key == "name":
        steps[1].value["name"] = str(steps[1].key)  # as messages call it
    else:
        lacks = steps[min(1, len(steps) - 1)]
        del lacks.holder[lacks.key]
    return True


def _settle_names(tree: dict[str, Any]) -> bool:
    """Leave out names that nothing in the tree has, and stages that cannot be without them; False: nothing to do.

    Every value has its right type by now.
    """
    before = json.dumps(tree)
    sources = tree["data"] = {name: entry for name, entry in tree["data"].items() if not no_file_name(name)}
    stages: list[dict[str, Any]] = []
    for stage in tree["stages"]:
        names = [earlier["name"] for earlier in stages]
        known = [name for name in stage["data"] if name in sources]
        if stage["name"] in [*names, "before"] or no_file_name(stage["name"]) or stage["data"] and not known:
            continue
        stage["data"] = known
        if stage.get("replay"):
            stage["replay"] = {name: share for name, share in stage["replay"].items() if name in sources}
        for key in ("init_from", "time_of"):
            if stage.get(key) not in names:
                stage.pop(key, None)
        stages.append(stage)
    if stages and all(stage.get("branch") for stage in stages):
        stages[-1]["branch"] = False
    tree["stages"] = stages
    if tree.get("eval", {}).get("data"):
        tree["eval"]["data"] = [name for name in tree["eval"]["data"] if name in sources]
    return json.dumps(tree) != before
