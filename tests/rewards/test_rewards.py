"""The verifier and every built-in reward, on vectors computed by hand or given by the methods' specifications."""

from __future__ import annotations

import pytest

from mmreason.rewards import REWARD_ARGS, REWARDS, hedge, parse_number, soft_score, strict_format, verify
from tests.rewards.build import COLOURS, group, sample, tagged, trajectory

MULTI = sample("A,C", "multi_choice", COLOURS)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think></think><answer></answer>", True),
        ("<think>\n\n</think> \n<answer>b\nc</answer>", True),
        ("<think>a</think><answer>b</answer>\n", False),
        (" <think>a</think><answer>b</answer>", False),
        ("<answer>b</answer>", False),
        ("<think>a</think>so<answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a<answer>b</answer></think><answer>c</answer>", False),
        ("<think>a</think><think>b</think><answer>c</answer>", False),
        ("<think>a</think><answer>b", False),
    ],
)
def test_strict_format(text: str, good: bool):
    assert strict_format(text) is good


@pytest.mark.parametrize(
    ("solution", "kind", "answer", "right"),
    [
        ("B", "single_choice", "b.", 1),
        ("B", "single_choice", "(B)", 1),
        ("B", "single_choice", "A", 0),
        ("B", "single_choice", "A,B", 0),
        ("A,C", "multi_choice", "C,A", 1),
        ("A,C", "multi_choice", "A", 0),
        ("A,C", "multi_choice", "A,B,C", 0),
        ("blue", "single_choice", "Blue", 1),
        ("blue,red", "multi_choice", "red, blue", 1),
        ("3", "numeric", "3.0", 1),
        ("3", "numeric", "3.", 1),
        ("0.75", "numeric", "3/4", 1),
        ("1200", "numeric", "1,200", 1),
        ("-4", "numeric", "\u22124", 1),
        ("3", "numeric", "3.01", 0),
        ("1000000", "numeric", "1000001", 0),
        ("3", "numeric", "three", 0),
        ("3", "numeric", "__import__('os').getpid()", 0),
        ("A  dog.", "text", "a dog", 1),
        ("a dog", "text", "a cat", 0),
        ("a dog", "text", "", 0),
    ],
)
def test_verify(solution: str, kind: str, answer: str, right: int):
    options = COLOURS if "choice" in kind else ()
    assert verify(sample(solution, kind, options), tagged(answer)) == right


def test_verify_needs_a_truth_and_a_known_type():
    assert verify(sample(None), tagged("A")) is None
    with pytest.raises(ValueError, match=r"row:1.*'riddle'.*single_choice"):
        verify(sample("A", "riddle"), tagged("A"))


@pytest.mark.parametrize(
    "text", ["", ".", "-", "3 m", "1/0", "1,20", "inf", "nan", "1e9999", "9" * 65, "2+2"]
)
def test_what_is_not_a_number(text: str):
    assert parse_number(text) is None


# (answer, subset, jaccard, f1) with truth {A, C}
SOFT_VECTORS = [
    ("A", 1 / 2, 1 / 2, 2 / 3),
    ("A,C", 1, 1, 1),
    ("A,B", 0, 1 / 3, 1 / 2),
    ("A,B,C", 0, 2 / 3, 4 / 5),
    ("B", 0, 0, 0),
    ("", 0, 0, 0),
]


@pytest.mark.parametrize(("answer", "subset", "jaccard", "f1"), SOFT_VECTORS)
def test_soft_rewards(answer: str, subset: float, jaccard: float, f1: float):
    text = tagged(answer)
    assert soft_score(MULTI, text) == pytest.approx(subset)
    assert soft_score(MULTI, text, "jaccard") == pytest.approx(jaccard)
    assert soft_score(MULTI, text, "f1") == pytest.approx(f1)
    assert soft_score(MULTI, text, "exact") == float(answer == "A,C")


def test_soft_is_exact_where_one_answer_is_asked():
    one = sample("A", "single_choice", COLOURS)
    for kind in ("subset", "jaccard", "f1"):
        assert soft_score(one, tagged("A"), kind) == 1
        assert soft_score(one, tagged("A,B"), kind) == 0  # no share for naming two
    assert soft_score(sample("3", "numeric"), tagged("3.0")) == 1
    assert soft_score(sample(None), tagged("3")) is None


def test_hedge():
    assert hedge(MULTI, tagged("A")) is True
    assert [hedge(MULTI, tagged(a)) for a in ("A,C", "A,B", "B", "")] == [False] * 4
    assert hedge(sample("A", "multi_choice", COLOURS), tagged("A")) is None
    assert hedge(sample("A", "single_choice", COLOURS), tagged("A")) is None


def test_blend_takes_away_what_hedging_earns():
    hedged, whole = tagged("A"), tagged("A,C")
    assert REWARDS["blend"](group(MULTI, [hedged, whole]), {}) == [0.25, 1.0]
    args = {"soft": "f1", "soft_weight": 0.3, "exact_weight": 0.7}
    assert REWARDS["blend"](group(MULTI, [hedged, whole]), args) == pytest.approx([0.2, 1.0])
    with pytest.raises(ValueError, match=r"'dice'.*jaccard"):
        REWARDS["blend"](group(MULTI, [whole]), {"soft": "dice"})


def test_numeric_is_graded_and_only_for_numbers():
    hundred = group(sample("100", "numeric"), [tagged(a) for a in ("100", "90", "104", "250", "many")])
    assert REWARDS["numeric"](hundred, {}) == pytest.approx([1, 0.9, 0.96, 0, 0])
    assert REWARDS["numeric"](hundred, {"tolerance": 0.05}) == pytest.approx([1, 0.9, 1, 0, 0])
    zero = group(sample("0", "numeric"), [tagged("0.0"), tagged("1")])
    assert REWARDS["numeric"](zero, {}) == [1, 0]
    assert REWARDS["numeric"](group(MULTI, [tagged("A")]), {}) == [None]


def test_overlong_and_constant():
    lengths = group(MULTI, [trajectory(length=n) for n in (60, 80, 90, 100, 101)])
    assert REWARDS["overlong"](lengths, {"max_length": 100, "cache": 20}) == [0, 0, -0.5, -1, -1]
    assert REWARDS["overlong"](lengths, {"max_length": 90, "cache": 0}) == [0, 0, 0, -1, -1]
    with pytest.raises(ValueError, match="max_length"):
        REWARDS["overlong"](lengths, {})
    assert REWARDS["constant"](lengths, {"value": 0.5}) == [0.5] * 5


def test_every_reward_answers_for_every_completion():
    five = group(MULTI, [tagged(a) for a in "ABCDE"])
    assert set(REWARD_ARGS) <= set(REWARDS)
    for name, reward in REWARDS.items():
        args = {"max_length": 9, "cache": 3} if name == "overlong" else {}
        assert len(reward(five, args)) == 5, name
