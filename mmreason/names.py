"""The names in a recipe: of stages and data sources, and what refers to them; checked on the plain mapping."""

from __future__ import annotations

import re
from typing import Any


def unresolved_names(tree: Any) -> list[str]:
    """Every name in a recipe's mapping that will not do: data sources and stages that are not there, stages of one
    name, names that are no names of a file (stages and sources have their folder in the run directory).

    `tree` may be wrong elsewhere: what has not the expected shape is passed over (its type is reported apart).
    """
    if not isinstance(tree.get("data"), dict) or not isinstance(tree.get("stages"), list):
        return []
    sources, before = tree["data"], list[str]()
    problems = [f"data.{name}: {problem}" for name in sources if (problem := no_file_name(name))]
    if all(isinstance(stage, dict) and stage.get("branch") is True for stage in tree["stages"]):
        problems.append("stages: every stage is a branch; the final model is the end of one that is not")
    for stage in tree["stages"]:
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            continue
        name = stage["name"]
        if name in before:
            problems.append(f"stages.{name}: a stage of this name comes before; stage names must differ")
        if problem := no_file_name(name):
            problems.append(f"stages.{name}: {problem}")
        if name == "before":
            problems.append(
                "stages.before: eval.json calls the measurement before training so; rename the stage"
            )
        problems += _unknown_sources(f"stages.{name}.data", stage.get("data"), sources)
        problems += _unknown_sources(f"stages.{name}.replay", stage.get("replay"), sources)
        for key in ("init_from", "time_of"):
            earlier = stage.get(key)
            if isinstance(earlier, str) and earlier not in before:
                problems.append(
                    f"stages.{name}.{key}: {earlier!r} is not an earlier stage; these are {before}"
                )
        before.append(name)
    held_out = tree.get("eval")
    if isinstance(held_out, dict):
        problems += _unknown_sources("eval.data", held_out.get("data"), sources)
    return problems


def no_file_name(name: str) -> str | None:
    """Why a name of a stage or source is none of a file; None where it is one."""
    if re.fullmatch(r"[^./\\*?\[\x00-\x1f][^/\\*?\[\x00-\x1f]*", name):
        return None
    return f"{name!r} names files of the run; give a name without / \\ * ? [ that does not begin with a dot"


def _unknown_sources(path: str, names: Any, sources: dict[str, Any]) -> list[str]:
    """One problem for each of `names` (a list, or a mapping's keys) that no data source has."""
    if not isinstance(names, (list, dict)):
        return []
    return [f"{path}: no data source {n!r}; there are {sorted(sources)}" for n in names if n not in sources]
