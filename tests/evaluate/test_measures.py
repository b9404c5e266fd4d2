"""Measures on answers whose numbers are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmreason.data.worlds import WORLDS
from mmreason.evaluate import chance_rate, evaluate_rows, judge, summarise, thirds
from mmreason.types import MediumRef, Message, Part, Sample

COLOURS = ("red", "blue", "green", "grey")


def sample(number: int, solution: str | None, problem_type: str, options=(), difficulty=None, kind="k"):
    parts = (Part("image", medium=0), Part("text", text=f"question {number}"))
    return Sample(
        id=f"{kind}:{number}",
        source="s",
        messages=(Message("system", (Part("text", text="Be brief."),)), Message("user", parts)),
        media=(MediumRef("image", f"{number}.png"),),
        solution=solution,
        problem_type=problem_type,
        options=tuple(options),
        difficulty=difficulty,
        columns={"kind": kind},
    )


def said(answer: str, thought: str = "look") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def test_measures_are_the_hand_computed_ones():
    samples = [
        sample(0, "red", "single_choice", COLOURS, 0.1),
        sample(1, "red, blue", "multi_choice", COLOURS, 0.5),
        sample(2, "3", "numeric", difficulty=0.9),
        sample(3, "red, blue", "multi_choice", COLOURS, 0.9),
    ]
    answers = [said("red"), said("blue", ""), "no tags, no number", said("blue, red")]
    out = evaluate_rows(samples, answers, [10, 20, 30, 40])
    overall = out["overall"]
    assert overall["n"] == 4
    assert overall["accuracy"] == 2 / 4  # red; blue, red
    assert overall["soft"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert overall["think_rate"] == 2 / 4  # an empty body is no thought, and neither is a text without tags
    assert overall["mean_length"] == 25
    assert overall["format"] == 3 / 4
    assert overall["hedge_rate"] == 1 / 2  # of the two with several answers, one named a strict part
    assert out["by_problem_type"]["multi_choice"]["accuracy"] == 1 / 2
    assert out["by_problem_type"]["numeric"]["hedge_rate"] is None
    assert set(out["by_modality"]) == {"image"}
    assert set(out["by_source"]) == {"s"} and set(out["by_kind"]) == {"k"}


def test_rows_that_name_their_own_source_are_measured_by_it():
    rows = [judge(sample(i, "cat", "text"), said("cat" if i else "dog"), 4) for i in range(3)]
    mixed = [replace(rows[0], origin="clevr"), replace(rows[1], origin="star"), rows[2]]
    found = {name: block["accuracy"] for name, block in summarise(mixed)["by_source"].items()}
    assert found == {"s": 1.0, "s/clevr": 0.0, "s/star": 1.0}
    named = sample(0, "cat", "text")
    assert judge(replace(named, columns={"source": "clevr"}), said("cat"), 4).origin == "clevr"


def test_a_source_whose_rows_all_name_the_same_origin_keeps_its_own_name():
    rows = [replace(judge(sample(i, "cat", "text"), said("cat"), 4), origin="image") for i in range(2)]
    assert list(summarise(rows)["by_source"]) == ["s"]


def test_rows_are_measured_by_the_group_of_their_kind():
    def asked(number: int, **columns: str) -> Sample:
        return replace(sample(number, "cat", "text"), columns=columns)

    world = {name: WORLDS["video"].groups[name][0] for name in ("primitive", "compositional")}
    rows = [
        judge(asked(0, source="video", kind=world["primitive"]), said("cat"), 4),
        judge(asked(1, source="video", kind=world["compositional"]), said("dog"), 4),
        judge(asked(2, source="mine", kind="count", group="compositional"), said("cat"), 4),
        judge(asked(3, source="mine", kind="count"), said("cat"), 4),
    ]
    assert [row.group for row in rows] == ["primitive", "compositional", "compositional", ""]
    found = {name: (block["n"], block["accuracy"]) for name, block in summarise(rows)["by_group"].items()}
    assert found == {"compositional": (2, 0.5), "primitive": (1, 1.0)}


def test_a_row_keeps_what_a_reader_needs_and_unverifiable_rows_do_not_count():
    row = judge(sample(0, None, "text"), said("anything"), 4)
    assert row.correct is None and row.soft is None and row.question == "question 0"
    assert row.media == ({"kind": "image", "path": "0.png", "root": "."},)
    known = judge(sample(1, "cat", "text"), said("Cat."), 4)
    overall = summarise([row, known])["overall"]
    assert overall["n"] == 2 and overall["accuracy"] == 1.0


def rows_of(*solutions, problem_type="numeric", options=(), kind="k"):
    return [judge(sample(i, s, problem_type, options, kind=kind), "", 0) for i, s in enumerate(solutions)]


def test_chance_is_the_better_of_a_guess_and_a_constant():
    assert chance_rate(rows_of("2", "2", "3", "4")) == 2 / 4  # no options: the constant 2
    assert (
        chance_rate(rows_of("red", "blue", "green", "grey", problem_type="single_choice", options=COLOURS))
        == 1 / 4
    )
    assert (
        chance_rate(rows_of("red", "red", "red", "grey", problem_type="single_choice", options=COLOURS))
        == 3 / 4
    )
    # several answers: one of the 2^4 - 1 non-empty sets; the order in which they are written does not matter
    several = rows_of("red,blue", "blue, red", "green", "grey", problem_type="multi_choice", options=COLOURS)
    assert chance_rate(several) == 2 / 4
    spread = [
        judge(sample(i, ",".join(chosen), "multi_choice", COLOURS), "", 0)
        for i, chosen in enumerate(
            [[c for j, c in enumerate(COLOURS) if code >> j & 1] for code in range(1, 16)]
        )
    ]
    assert chance_rate(spread) == pytest.approx(1 / 15)


def test_chance_takes_the_best_strategy_for_each_form_and_averages_over_rows():
    count = rows_of("2", "2", "3", "4", kind="count")  # constant 2: 1/2
    total = rows_of("7", "8", kind="sum")  # constant: 1/2
    pick = rows_of(
        "red", "blue", "green", "grey", problem_type="single_choice", options=COLOURS, kind="pick"
    )  # 1/4
    assert chance_rate([*count, *total, *pick]) == pytest.approx((4 * 0.5 + 2 * 0.5 + 4 * 0.25) / 10)
    # one constant for all forms together would have claimed only 2/10
    assert chance_rate([]) is None


def test_chance_of_a_slice_does_not_follow_its_noise():
    solutions = ["2", "2", "2", "3", "4", "5", "2", "6", "7"]
    samples = [sample(i, s, "numeric", difficulty=i / 8) for i, s in enumerate(solutions)]
    out = evaluate_rows(samples, [said("1")] * 9, [1] * 9)
    assert out["overall"]["chance"] == pytest.approx(4 / 9)
    # the constant is 2 in every third; the best one inside the second third alone would have had 1/3
    assert [p["chance"] for p in out["by_difficulty"]] == pytest.approx([1.0, 0.0, 1 / 3])


def test_thirds_have_equal_sizes_and_keep_equal_difficulties_together():
    even = [judge(sample(i, "1", "numeric", difficulty=i / 10), "", 0) for i in range(9)]
    assert [(lo, hi, len(part)) for lo, hi, part in thirds(even)] == [
        (0.0, 0.2, 3),
        (0.3, 0.5, 3),
        (0.6, 0.8, 3),
    ]
    tied = [judge(sample(i, "1", "numeric", difficulty=d), "", 0) for i, d in enumerate([0, 0, 0, 0, 1, 1])]
    assert [(lo, hi, len(part)) for lo, hi, part in thirds(tied)] == [(0, 0, 4), (1, 1, 2)]
    assert thirds([judge(sample(0, "1", "numeric"), "", 0)]) == []
    assert sum(len(part) for _, _, part in thirds([*even, *tied])) == 15


def test_by_difficulty_has_the_promised_keys():
    samples = [sample(i, "1", "numeric", difficulty=i / 5) for i in range(6)]
    out = evaluate_rows(samples, [said("1") if i < 3 else said("2", "") for i in range(6)], [1] * 6)
    parts = out["by_difficulty"]
    assert [p["n"] for p in parts] == [2, 2, 2]
    assert [p["accuracy"] for p in parts] == [1.0, 0.5, 0.0]
    assert [p["think_rate"] for p in parts] == [1.0, 0.5, 0.0]
