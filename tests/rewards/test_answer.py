"""Reading answers: tags, letters, named options."""

from __future__ import annotations

import pytest

from mmreason.rewards import answer_set, parse_answer, think_body, uses_letters
from tests.rewards.build import COLOURS, sample, tagged


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (tagged(" B "), "B"),
        ("<think></think><answer>\n4\n</answer>", "4"),
        ("<think>is it <answer>A</answer>?</think><answer>B</answer>", "B"),
        ("<answer>A</answer><answer>B</answer>", "A"),
        ("blue", "blue"),
        ("<think>hm</think>blue", "blue"),
        ("<think>blue", None),
        ("<think>hm</think><answer>blue", None),
        (tagged(""), ""),
        ("", None),
    ],
)
def test_parse_answer(text: str, answer: str | None):
    assert parse_answer(text) == answer


def test_think_body_is_none_only_without_a_block():
    assert think_body("<think>\n\n</think><answer>A</answer>") == "\n\n"
    assert think_body("<answer>A</answer>") is None


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("A,C", "AC"),
        ("c, a", "AC"),
        ("(A), (C).", "AC"),
        ("A.,C.", "AC"),
        ("A) red, C: green", "AC"),
        ("A and C", "AC"),
        ("A C", "AC"),
        ("red, green", "AC"),
        ("A,A,C", "AC"),
        ("A,", "A"),
        ("", ""),
    ],
)
def test_lettered_spellings(text: str, letters: str):
    assert answer_set("A,C", COLOURS, text) == frozenset(letters)


@pytest.mark.parametrize("text", ["E", "AC", "B. red", "A, purple", "neither"])
def test_what_is_no_option_never_equals_the_truth(text: str):
    given = answer_set("A,C", COLOURS, text)
    assert not given <= {"A", "C"}


def test_letters_without_options():
    assert answer_set("B", (), "(b)") == {"B"}
    assert answer_set("A,C", (), "a, c") == {"A", "C"}


def test_named_options():
    assert answer_set("red, blue", COLOURS, "Blue,red.") == {"red", "blue"}
    assert answer_set("red", COLOURS, "A") == {"a"}  # the options were shown without letters
    assert answer_set("red", COLOURS, "red and blue") == {"red", "blue"}
    assert not uses_letters("red", COLOURS) and uses_letters("A", COLOURS)


def test_an_option_that_contains_a_comma_stays_whole():
    options = ("red, then blue", "blue", "red")
    assert answer_set("red, then blue", options, "Red, then blue") == {"red, then blue"}
    assert answer_set("red, then blue", options, "blue, red, then blue") == {"blue", "red, then blue"}


def test_options_that_are_letters_are_named():
    options = ("B", "A", "C")
    assert not uses_letters("A", options)
    assert answer_set("A", options, "a") == {"a"}


def test_the_sample_may_stand_for_its_solution():
    lettered = sample("<answer>A,C</answer>", "multi_choice", COLOURS)
    assert answer_set(lettered, COLOURS, "c,a") == {"A", "C"}
