"""From question to row: options, solutions and rationales in both styles, against values written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmreason.data.worlds.rows import (
    Question,
    SceneItem,
    Target,
    Thought,
    WorldSettings,
    build_row,
    generator,
    rationale_bodies,
    styled_options,
)

THOUGHT = Thought(
    "count each colour", "red 11 12, blue 13 14", "red 2, blue 2", "red 2, blue 2, so red, blue"
)
TWICE = Question(
    "twice",
    "which colours are there at least twice?",
    "multi_choice",
    ("blue", "red"),
    THOUGHT,
    0.5,
    options=("green", "red", "blue", "yellow"),
    evidence=({"box": [1, 2, 3, 4], "label": "red star"},),
)
COUNT = Question("count", "count the stars.", "numeric", ("2",), Thought("p", "c", "1 2", "c, so 2"), 0.1)


def test_named_options_are_listed_and_answered_in_the_order_shown() -> None:
    assert styled_options(TWICE, "named") == (" options: green, red, blue, yellow", "red, blue")


def test_lettered_options_are_listed_and_answered_by_letter() -> None:
    assert styled_options(TWICE, "lettered") == (" options: A green, B red, C blue, D yellow", "B,C")


def test_a_question_without_options_has_no_hint() -> None:
    assert styled_options(COUNT, "named") == ("", "2")
    assert styled_options(COUNT, "lettered") == ("", "2")


def test_an_answer_outside_the_options_is_an_impossible_state() -> None:
    wrong = Question("twice", "?", "multi_choice", ("purple",), THOUGHT, 0.5, options=("red", "blue"))
    with pytest.raises(AssertionError, match="purple"):
        styled_options(wrong, "named")


def test_structured_rationale_has_the_four_parts_and_ends_in_the_answer() -> None:
    assert rationale_bodies(TWICE, "red, blue") == {
        "structured": "<planning>count each colour</planning><caption>red 11 12, blue 13 14</caption>"
        "<reasoning>red 2, blue 2</reasoning><summary>red, blue</summary>",
        "free": "red 2, blue 2, so red, blue",
    }


def test_lettered_rationale_says_which_letters_the_words_are() -> None:
    bodies = rationale_bodies(TWICE, "B,C")
    assert bodies["structured"].endswith("<summary>red, blue is B,C</summary>")
    assert bodies["free"] == "red 2, blue 2, so red, blue is B,C"


def test_a_thought_with_a_summary_keeps_it() -> None:
    thought = Thought("p", "c", "r", "f", summary="3 in all")
    question = Question("caption", "describe the picture.", "text", ("row 1 empty",), thought, 0.1)
    assert rationale_bodies(question, "row 1 empty")["structured"].endswith("<summary>3 in all</summary>")


def test_row_shows_media_first_and_carries_every_documented_key() -> None:
    settings = WorldSettings("image", 1, 10, 0, "train")
    refs = [{"type": "image", "image": "images-000.zip#000000.png"}]
    row = build_row(TWICE, 2, SceneItem("train-0-5fe1-000007", (), ()), refs, settings)
    text = "which colours are there at least twice? options: green, red, blue, yellow"
    assert row.pop("rationale").keys() == {"structured", "free"}
    assert row == {
        "id": "image-train-0-5fe1-000007-2",
        "messages": [{"role": "user", "content": [*refs, {"type": "text", "text": text}]}],
        "solution": "red, blue",
        "problem_type": "multi_choice",
        "options": ["green", "red", "blue", "yellow"],
        "evidence": [{"box": [1, 2, 3, 4], "label": "red star"}],
        "difficulty": 0.5,
        "kind": "twice",
        "scene": "train-0-5fe1-000007",
        "source": "image",
    }


def test_the_first_row_of_a_scene_carries_its_dense_truth() -> None:
    settings = WorldSettings("image", 1, 10, 0, "train")
    item = SceneItem("s", (), (), (Target(0, "image/colour", ("empty", "red"), (1, 1, 2), (0, 1)),))
    first, second = (build_row(COUNT, number, item, [], settings) for number in (0, 1))
    assert first["targets"] == [
        {
            "medium": 0,
            "name": "image/colour",
            "words": ("empty", "red"),
            "grid": (1, 1, 2),
            "labels": (0, 1),
            "seconds": 0.0,
        }
    ]
    assert "targets" not in second


def test_rows_without_rationale_leave_the_key_out() -> None:
    settings = WorldSettings("image", 1, 10, 0, "train", rationale=False)
    assert "rationale" not in build_row(COUNT, 0, SceneItem("s", (), ()), [], settings)


def test_generators_depend_on_their_whole_key() -> None:
    draws = {
        key: tuple(generator(*key).integers(1 << 30, size=4)) for key in [(0, 1), (1, 0), (0, "1"), (0, 1, 2)]
    }
    assert len(set(draws.values())) == 4
    assert np.array_equal(generator(0, 1).integers(1 << 30, size=4), draws[0, 1])
