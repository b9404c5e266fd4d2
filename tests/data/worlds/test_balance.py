"""Which question is asked: the counters, the pilot's floor, and what happens without them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mmreason.data.worlds.balance import FLOOR, SLACK, Balance, Candidate, pilot_keys


def _offer(kind: str, *answers: int) -> list[Candidate]:
    return [Candidate(kind, "", answer, (answer,)) for answer in answers]


def _keys(kind: str, answers: range) -> dict[tuple[str, str, object], float]:
    return {(kind, "", answer): 1.0 for answer in answers}


def test_an_answer_that_ran_ahead_is_not_asked_for() -> None:
    balance = Balance(_keys("count", range(3)))
    rng = np.random.default_rng(0)
    asked = [balance.choose(["count"], lambda kind: _offer(kind, 0), 1, rng) for _ in range(5)]
    assert [len(a) for a in asked] == [
        1,
        1,
        1,
        0,
        0,
    ]  # at most SLACK = 2 ahead of the others when it is asked
    assert SLACK == 2
    chosen = balance.choose(["count"], lambda kind: _offer(kind, 0, 2), 1, rng)
    assert [c.answer for c in chosen] == [2]


def test_answers_come_out_even_although_scenes_offer_them_unevenly() -> None:
    balance = Balance(_keys("count", range(3)))
    rng = np.random.default_rng(1)
    asked: Counter[object] = Counter()
    for _ in range(600):
        answer = int(rng.choice(3, p=[0.8, 0.15, 0.05]))
        offer = {"count": _offer("count", answer)}
        asked.update(c.answer for c in balance.choose(["count"], offer.__getitem__, 1, rng))
    assert max(asked.values()) - min(asked.values()) <= SLACK + 1
    assert min(asked.values()) > 15


def test_weights_give_an_answer_class_its_share() -> None:
    balance = Balance({("which", "", 1): 4.0, ("which", "", 2): 6.0})
    rng = np.random.default_rng(2)
    offer = [Candidate("which", "", 1, ("a",), 4.0), Candidate("which", "", 2, ("b",), 6.0)]
    asked = Counter(
        c.answer for _ in range(1000) for c in balance.choose(["which"], lambda kind: offer, 1, rng)
    )
    assert abs(asked[1] - 400) <= 12 and abs(asked[2] - 600) <= 12


def test_one_scene_is_asked_of_different_kinds_first_and_never_the_same_question_twice() -> None:
    balance = Balance(_keys("count", range(2)) | _keys("sum", range(1)))
    offers = {"count": _offer("count", 0, 1), "sum": _offer("sum", 0)}
    chosen = balance.choose(["count", "sum"], offers.__getitem__, 4, np.random.default_rng(3))
    assert {c.kind for c in chosen[:2]} == {"count", "sum"}
    assert len(chosen) == len(set(chosen)) == 3


def test_the_pilot_drops_answers_that_scenes_hardly_offer() -> None:
    scenes = [_offer("count", 0, 5) if i == 0 else _offer("count", 0) for i in range(100)]
    assert 1 / 100 < FLOOR
    assert pilot_keys(scenes) == {("count", "", 0): 1.0}
