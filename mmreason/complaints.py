"""What is said of a recipe's wrong keys: the user's path of each, what was got, what is allowed, the nearest key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mmreason.schema import STAGES, Recipe

NOT_YET = {  # keys of other trainers' recipes that stand for what is not there
    "tools": "this version has no tools for a model to call; remove the key",
    "use_vllm": "here it is `rollout: {engine: vllm, base_url: ...}`, with `mmreason serve MODEL` beside the run",
    "async": "here it is `rollout: {engine: vllm, staleness: 1}`",
}
KINDS: dict[type, str] = {
    str: "text", bool: "true/false", int: "an integer", float: "a number", list: "a list", dict: "a mapping",
    type(None): "null",
}  # fmt: skip


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `known`, or nothing when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(errors: Sequence[Any], tree: dict[str, Any]) -> list[str]:
    """One line per wrong key of `tree`, from pydantic's errors.

    Those of one key's alternatives (a list, or the word 'all') become one line.
    """
    lines: dict[str, list[str]] = {}
    for e in errors:
        path, model = _locate(e["loc"], tree)
        messages = lines.setdefault(path, [])
        message = _message(e, path, model)
        if message not in messages:
            messages.append(message)
    return [
        f"{path}: {' or: '.join(messages)}" if path else " or: ".join(messages)
        for path, messages in lines.items()
    ]


def _message(e: Any, path: str, model: type[BaseModel] | None) -> str:
    kind, got = e["type"], e["input"]
    if kind == "extra_forbidden" and path.rsplit(".", 1)[-1] in NOT_YET:
        return NOT_YET[path.rsplit(".", 1)[-1]]
    if kind == "extra_forbidden" and model is not None:
        fields = list(model.model_fields)
        return f"unknown key{nearest(path.rsplit('.', 1)[-1], fields)} (allowed: {', '.join(fields)})"
    if kind == "missing":
        return "this key is required"
    if kind == "union_tag_not_found":
        return f"a stage needs a type, one of {', '.join(STAGES)}"
    if kind == "union_tag_invalid":
        tag = str(e["ctx"]["tag"])
        return f"no stage type {tag!r}{nearest(tag, STAGES)} (allowed: {', '.join(STAGES)})"
    if kind == "value_error":
        return str(e["ctx"]["error"])
    message = (
        e["msg"].removeprefix("Input ").replace("valid array", "list").replace("valid dictionary", "mapping")
    )
    hint = ""
    if kind == "literal_error" and isinstance(got, str):
        hint = nearest(got, re.findall(r"'([^']+)'", e["ctx"]["expected"]))
    return f"{message}; got {json.dumps(got, default=str)[:200]} ({kind_of(got)}){hint}"


def _locate(loc: tuple[int | str, ...], tree: Any) -> tuple[str, type[BaseModel] | None]:
    """The user's path of a pydantic location, and the model that holds its last key.

    Pydantic puts union tags ('sft', 'list[str]') between real keys; what is not in the tree is such a tag, except
    for the last element, which may be a missing key.
    """
    names: list[str] = []
    model: type[BaseModel] | None = Recipe
    holder, here, annotation = model, tree, Any
    for i, part in enumerate(loc):
        if isinstance(here, dict) and part in here:
            holder, annotation = model, _annotation(model, str(part)) if model else _item(annotation)
            names.append(str(part))
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
            holder, annotation = None, _item(annotation)
            name = here.get("name") if isinstance(here, dict) else None
            names.append(name if isinstance(name, str) else str(part))
        elif i == len(loc) - 1 and model is not None and part in model.model_fields:
            return ".".join([*names, str(part)]), model
        else:
            if part in STAGES:
                model = STAGES[str(part)]
            continue
        model = _model(annotation, here)
    return ".".join(names), holder


def _annotation(model: type[BaseModel], key: str) -> Any:
    return model.model_fields[key].annotation if key in model.model_fields else Any


def _item(annotation: Any) -> Any:
    """What a dict's values or a list's items are."""
    for option in [annotation, *get_args(annotation)]:
        if get_origin(option) in (dict, list, tuple):
            return get_args(option)[-1]
    return Any


def _model(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The model class behind an annotation; of a stage, the one its type names. A mapping of models is none itself."""
    if get_origin(annotation) is dict:
        return None
    if isinstance(value, dict) and "Stage" in str(annotation) and value.get("type") in STAGES:
        return STAGES[value["type"]]
    for option in [annotation, *get_args(annotation)]:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def kind_of(value: Any) -> str:
    """What a value is called: `text`, `a list`."""
    return KINDS.get(type(value), type(value).__name__)
