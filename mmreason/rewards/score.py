"""Scoring a group: the verifier first, then every named reward, then their weighted sum."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmreason.plugins import load_function
from mmreason.rewards.registry import REWARD_ARGS, REWARDS
from mmreason.rewards.verify import verify
from mmreason.types import Group

UserFunction = Callable[..., Sequence[float | None]]


def score_group(
    group: Group,
    names: Sequence[str],
    weights: Sequence[float] | None = None,
    args: Mapping[str, Mapping[str, Any]] | None = None,
    user_functions: Mapping[str, UserFunction] | None = None,
) -> tuple[Group, list[str]]:
    """The group with `accuracy`, `rewards` and `reward` filled, and a log of what user functions got wrong.

    `reward` is the weighted sum over the rewards that apply; None when none does. A user function has TRL's
    form `fn(completions, **columns) -> list[float | None]`: one text and one value of every column per
    completion, and `args[name]` as further keywords. A value that is no finite number, and an exception,
    count as None and are named in the log; a list of the wrong length stops with ValueError.
    """
    users, arguments = user_functions or {}, args or {}
    problems = reward_problems(names, weights, arguments, users)
    if problems:
        raise ValueError("; ".join(problems))
    log: list[str] = []
    columns: dict[str, list[float | None]] = {}
    for name in names:
        if name in users:
            columns[name], said = call_user_function(name, users[name], group, arguments.get(name, {}))
            log.extend(said)
        else:
            columns[name] = REWARDS[name](group, arguments.get(name, {}))
    scale = dict(zip(names, weights or [1.0] * len(names), strict=True))
    scored = []
    for i, trajectory in enumerate(group.trajectories):
        rewards = {name: values[i] for name, values in columns.items()}
        known = [scale[name] * value for name, value in rewards.items() if value is not None]
        scored.append(
            replace(
                trajectory,
                accuracy=verify(group.sample, trajectory.text),
                rewards=rewards,
                reward=math.fsum(known) if known else None,
            )
        )
    return replace(group, trajectories=tuple(scored)), log


def user_rewards(names: Sequence[str]) -> dict[str, UserFunction]:
    """The user's functions among a recipe's reward names: those written FILE.py:FUNCTION."""
    return {name: load_function(name) for name in names if name not in REWARDS and ".py:" in name}


def reward_labels(names: Sequence[str]) -> dict[str, str]:
    """Reward name -> what metrics and records call it: a user's function by its file's stem, never by its path.

    Example: `["exact", "/home/me/mine.py:short"]` gives "exact" and "mine:short"; a second file of that stem with a
    function of that name gives "mine:short-2".
    """
    labels: dict[str, str] = {}
    for name in names:
        path, _, function = name.rpartition(":")
        label = name if name in REWARDS or not path else f"{Path(path).stem}:{function}"
        taken = sum(given == label or given.startswith(f"{label}-") for given in labels.values())
        labels[name] = f"{label}-{taken + 1}" if taken else label
    return labels


def reward_problems(
    names: Sequence[str],
    weights: Sequence[float] | None,
    args: Mapping[str, Mapping[str, Any]],
    user_functions: Mapping[str, UserFunction],
) -> list[str]:
    """Everything wrong with a recipe's choice of rewards, in words; empty when it is sound."""
    problems = []
    known = [*REWARDS, *user_functions]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(
                f"reward {name!r} is not known; these are: {sorted(known)}, or FILE.py:FUNCTION{hint}"
            )
    if len(set(names)) != len(names):
        problems.append(f"reward_funcs {list(names)} names a reward twice; give it once with a larger weight")
    if weights is not None and len(weights) != len(names):
        problems.append(
            f"{len(weights)} reward_weights for {len(names)} reward_funcs; give one weight per reward"
        )
    for name, given in args.items():
        if name not in names:
            problems.append(
                f"reward_args.{name} belongs to no reward of {list(names)}; remove it or add the reward"
            )
        elif name in REWARDS and name not in user_functions:
            allowed = REWARD_ARGS.get(name, ())
            problems += [
                f"reward_args.{name}.{key} is not known; {name} reads {list(allowed) or 'nothing'}"
                for key in given
                if key not in allowed
            ]
    return problems


def call_user_function(
    name: str, function: UserFunction, group: Group, args: Mapping[str, Any]
) -> tuple[list[float | None], list[str]]:
    """A user's reward on one group, checked value by value: (values with None for the bad ones, log)."""
    size = len(group.trajectories)
    keywords = _accepted(name, function, {**user_columns(group), **args})
    try:
        returned: Any = function(**keywords)
    except Exception as error:  # a user's function may fail in any way; the run goes on and says so
        return [None] * size, [f"reward {name} on row {group.sample.id}: {type(error).__name__}: {error}"]
    if hasattr(returned, "tolist"):
        returned = returned.tolist()
    if not isinstance(returned, list | tuple) or len(returned) != size:
        got = (
            f"{len(returned)} values" if isinstance(returned, list | tuple) else f"{type(returned).__name__}"
        )
        raise ValueError(
            f"reward {name} on row {group.sample.id} returned {got} for {size} completions; "
            "return a list with one number or None per completion"
        )
    values: list[float | None] = []
    log: list[str] = []
    for i, raw in enumerate(returned):
        value = raw.item() if hasattr(raw, "item") else raw
        good = isinstance(value, numbers.Real) and math.isfinite(value)
        if value is not None and not good:
            log.append(
                f"reward {name} on row {group.sample.id}, completion {i}: {value!r} is no finite number"
            )
        values.append(float(value) if good else None)
    return values, log


def user_columns(group: Group) -> dict[str, list[Any]]:
    """TRL's keyword arguments for one group: every column of the row repeated for each completion.

    The row's own further columns come beside `prompts` (text), `completions`, `completion_ids`, `id`,
    `source` (the row's own, else the data's name), `solution`, `problem_type`, `options`, `difficulty`; no other
    column of the row replaces one of these.
    """
    sample, size = group.sample, len(group.trajectories)
    prompt = "\n".join(
        part.text for message in sample.messages for part in message.parts if part.type == "text"
    )
    columns = {name: [value] * size for name, value in sample.columns.items()}
    own: dict[str, Any] = {
        "prompts": prompt,
        "id": sample.id,
        "source": sample.columns.get("source") or sample.source,
        "solution": sample.solution,
        "problem_type": sample.problem_type,
        "options": list(sample.options),
        "difficulty": sample.difficulty,
    }
    columns.update({name: [value] * size for name, value in own.items()})
    columns["completions"] = [t.text for t in group.trajectories]
    columns["completion_ids"] = [t.ids.tolist() for t in group.trajectories]
    return columns


def _accepted(name: str, function: UserFunction, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords the function takes: all of them when it has **kwargs, as TRL's functions do."""
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters if p.kind not in variable]
    missing = [p.name for p in named if p.default is inspect.Parameter.empty and p.name not in keywords]
    if missing:
        raise ValueError(
            f"reward {name} asks for {missing}, which the rows do not have; they have {sorted(keywords)}; "
            "add the column to the rows or give the parameter a default"
        )
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return dict(keywords)
    return {p.name: keywords[p.name] for p in named if p.name in keywords}
