"""Scoring groups: weights, rewards that do not apply, and users' functions that misbehave."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.rewards import reward_labels, reward_problems, score_group, user_rewards
from tests.rewards.build import COLOURS, group, sample, tagged

MULTI = sample("A,C", "multi_choice", COLOURS, difficulty=0.5, columns={"hint": "two", "completions": "no"})
PAIR = group(MULTI, [tagged("A"), "<answer>C,A</answer>"])


def test_accuracy_stays_apart_from_the_weighted_sum():
    scored, log = score_group(PAIR, ["subset", "format"], [1.0, 0.25])
    assert log == []
    assert [t.accuracy for t in scored.trajectories] == [0.0, 1.0]
    assert [dict(t.rewards) for t in scored.trajectories] == [
        {"subset": 0.5, "format": 1.0},
        {"subset": 1.0, "format": 0.0},
    ]
    assert [t.reward for t in scored.trajectories] == [0.75, 1.0]
    assert scored.accuracy == 0.5
    assert PAIR.trajectories[0].reward is None  # the group given is left alone


def test_none_is_not_zero():
    scored, _ = score_group(PAIR, ["numeric", "exact"])
    assert [t.reward for t in scored.trajectories] == [0.0, 1.0]
    nothing, _ = score_group(PAIR, ["numeric"])
    assert [t.reward for t in nothing.trajectories] == [None, None]


def test_a_users_function_sees_the_columns():
    seen: dict[str, Any] = {}

    def probe(completions, solution, **columns):
        seen.update(columns, solution=solution, completions=completions)
        return np.array([0.5, 1.0])

    scored, log = score_group(PAIR, ["u.py:probe"], None, {"u.py:probe": {"power": 2}}, {"u.py:probe": probe})
    assert not log and [t.reward for t in scored.trajectories] == [0.5, 1.0]
    assert seen["completions"] == [t.text for t in PAIR.trajectories]
    assert seen["solution"] == ["A,C"] * 2 and seen["hint"] == ["two"] * 2 and seen["difficulty"] == [0.5] * 2
    assert seen["completion_ids"] == [[0, 1], [0, 1]] and seen["prompts"] == ["Which?"] * 2
    assert seen["power"] == 2 and seen["source"] == ["rows"] * 2
    own = group(sample("A", columns={"source": "clevr"}), PAIR.trajectories)
    score_group(own, ["u.py:probe"], None, None, {"u.py:probe": probe})
    assert seen["source"] == ["clevr"] * 2


def test_a_function_without_kwargs_gets_what_it_names():
    def short(completions, hint):
        return [float(len(h)) for h in hint]

    scored, _ = score_group(PAIR, ["f"], user_functions={"f": short})
    assert [t.reward for t in scored.trajectories] == [3.0, 3.0]


def test_a_function_that_asks_for_a_missing_column_stops():
    def wants(completions, caption, **columns):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match=r"\['caption'\].*solution"):
        score_group(PAIR, ["f"], user_functions={"f": wants})


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", [1.0], 1j])
def test_bad_values_are_masked_and_named(bad):
    scored, log = score_group(
        PAIR, ["f", "exact"], user_functions={"f": lambda completions, **columns: [bad, True]}
    )
    assert [t.rewards["f"] for t in scored.trajectories] == [None, 1.0]
    assert [t.reward for t in scored.trajectories] == [0.0, 2.0]
    assert len(log) == 1 and "row:1" in log[0] and "completion 0" in log[0] and repr(bad) in log[0]


def test_an_exception_masks_the_group_and_is_named():
    def broken(completions, **columns):
        raise KeyError("caption")

    scored, log = score_group(PAIR, ["f"], user_functions={"f": broken})
    assert [t.reward for t in scored.trajectories] == [None, None]
    assert log == ["reward f on row row:1: KeyError: 'caption'"]


@pytest.mark.parametrize("returned", [[1.0], [1.0] * 3, 1.0, None, {"a": 1, "b": 2}])
def test_a_wrong_length_stops(returned):
    with pytest.raises(ValueError, match=r"reward f on row row:1 returned .* for 2 completions"):
        score_group(PAIR, ["f"], user_functions={"f": lambda completions, **columns: returned})


def test_tensors_and_explicit_none_are_fine():
    functions: dict[str, Any] = {
        "tensor": lambda completions, **columns: torch.tensor([0.5, 0.25]),
        "none": lambda completions, **columns: [None, np.float32(2.0)],
    }
    scored, log = score_group(PAIR, ["tensor", "none"], user_functions=functions)
    assert not log and [t.reward for t in scored.trajectories] == [0.5, 2.25]


def test_problems_are_named_all_at_once():
    args = {"blend": {"softness": 1}, "f1": {}}
    problems = reward_problems(["exct", "blend", "blend"], [1.0], args, {})
    assert len(problems) == 5
    assert "'exact'" in problems[0] and "twice" in problems[1] and "1 reward_weights" in problems[2]
    assert "softness" in problems[3] and "exact_weight" in problems[3] and "reward_args.f1" in problems[4]
    assert reward_problems(["exact", "blend"], [1, 1], {"blend": {"soft": "f1"}}, {}) == []
    with pytest.raises(ValueError, match="did you mean 'format'"):
        score_group(PAIR, ["fromat"])


def test_user_rewards_load_from_their_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text("def length(completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    name = f"{file}:length"
    functions = user_rewards(["exact", name])
    assert list(functions) == [name]
    scored, _ = score_group(PAIR, [name], user_functions=functions)
    assert [t.reward for t in scored.trajectories] == [float(len(t.text)) for t in PAIR.trajectories]


def test_a_users_function_is_named_by_its_files_stem_and_uniquely() -> None:
    names = ["exact", "/a/mine.py:short", "/b/mine.py:short", "mine.py:long", "/c/mine.py:short"]
    assert list(reward_labels(names).values()) == [
        "exact",
        "mine:short",
        "mine:short-2",
        "mine:long",
        "mine:short-3",
    ]
