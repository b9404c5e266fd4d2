"""Samplers: order, coverage, exact resume."""

from __future__ import annotations

import json
import logging
from statistics import fmean

import pytest

from mmreason.curriculum import SAMPLERS, Sampler, make_sampler, peek
from mmreason.schema import SamplerConfig
from mmreason.types import Sample
from tests.rewards.build import sample


def pool(count: int = 40) -> list[Sample]:
    """Ids in another order than difficulties."""
    return [sample("1", id=f"r:{(7 * i) % count:03d}", difficulty=i / count) for i in range(count)]


def ids(drawn: list[Sample]) -> list[str]:
    return [s.id for s in drawn]


def build(name: str, rows: list[Sample], steps: int = 20, seed: int = 0, window: float = 0.25) -> Sampler:
    return make_sampler(SamplerConfig(name=name, window=window), rows, steps, seed)


def test_every_sampler_of_the_recipe_is_built():
    assert set(SAMPLERS) == {"uniform", "easy_to_hard"}


def test_uniform_passes_lose_no_row():
    sampler = build("uniform", pool(10))
    drawn = [i for _ in range(5) for i in ids(sampler.next(4))]  # 20 draws across an uneven boundary
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(ids(pool(10)))
    assert drawn[:10] != drawn[10:]
    assert sampler.metrics() == {"curriculum/epoch": 2.0}


def test_easy_to_hard_moves_from_easy_to_hard():
    sampler = build("easy_to_hard", pool(40), steps=10)
    means, ends = [], []
    for _ in range(10):
        drawn = [s.difficulty for s in sampler.next(4) if s.difficulty is not None]
        means.append(fmean(drawn))
        ends.append((min(drawn), max(drawn)))
    # the window is a quarter of the pool: [0, .25) at the first step and [.75, 1) at the last
    assert ends[0][1] < 0.25 and ends[-1][0] >= 0.75
    assert means[0] < 0.25 < means[5] < 0.75 < means[-1]
    halves = fmean(means[:5]), fmean(means[5:])
    assert halves[1] - halves[0] > 0.3
    assert sampler.metrics()["curriculum/window_end"] == 1.0


def test_the_uniform_sampler_would_fail_that():
    sampler = build("uniform", pool(40))
    first = [s.difficulty for s in sampler.next(8)]
    assert max(d for d in first if d is not None) > 0.25


def test_the_window_follows_the_training_step_and_not_the_refills():
    sampler = build("easy_to_hard", pool(40), steps=10)
    for _ in range(6):
        drawn = sampler.next(4, step=0)  # six rounds of the first step
        assert max(s.difficulty or 0 for s in drawn) < 0.25
    assert min(s.difficulty or 0 for s in sampler.next(4, step=9)) >= 0.75
    assert min(s.difficulty or 0 for s in sampler.next(4, step=500)) >= 0.75


def test_no_row_repeats_while_another_waits():
    sampler = build("easy_to_hard", pool(40), steps=1000)
    drawn = [i for _ in range(5) for i in ids(sampler.next(2, step=0))]  # ten rows in the window
    assert len(set(drawn)) == 10


def test_ties_go_by_id_and_unknown_difficulties_come_last(caplog):
    rows = [sample("1", id=i, difficulty=d) for i, d in (("b", 0.5), ("z", None), ("a", 0.5), ("c", 0.1))]
    with caplog.at_level(logging.WARNING):
        sampler = make_sampler(SamplerConfig(name="easy_to_hard"), rows, 4, 0)
    assert "1 of 4 rows" in caplog.text and "z" in caplog.text
    assert ids(sampler.pool) == ["c", "a", "b", "z"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["uniform", "easy_to_hard"])
def test_the_order_of_the_file_does_not_matter_and_the_seed_does(name: str):
    rows = pool()
    first, second, other = build(name, rows), build(name, rows[::-1]), build(name, rows, seed=1)
    drawn = [ids(s.next(10)) for s in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", ["uniform", "easy_to_hard"])
@pytest.mark.parametrize("cut", [0, 3, 11])
def test_resume_is_exact_in_the_middle_of_a_pass(name: str, cut: int):
    whole = build(name, pool())
    expected = [ids(whole.next(3)) for _ in range(16)]
    first = build(name, pool())
    got = [ids(first.next(3)) for _ in range(cut)]
    state = json.loads(json.dumps(first.state_dict()))
    second = build(name, pool())
    second.load_state_dict(state)
    got += [ids(second.next(3)) for _ in range(cut, 16)]
    assert got == expected
    assert second.metrics() == whole.metrics()


@pytest.mark.parametrize("name", ["uniform", "easy_to_hard"])
def test_state_of_other_rows_is_refused(name: str):
    state = build(name, pool(40)).state_dict()
    with pytest.raises(ValueError, match="other rows"):
        build(name, pool(39)).load_state_dict(state)


@pytest.mark.parametrize("name", ["uniform", "easy_to_hard"])
def test_more_prompts_than_rows(name: str):
    drawn = ids(build(name, pool(3)).next(7))
    assert len(drawn) == 7 and {drawn.count(i) for i in set(drawn)} == {2, 3}


def test_no_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        build("uniform", [])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_peek_shows_what_comes_and_draws_nothing(name: str) -> None:
    sampler, twin = build(name, pool(10)), build(name, pool(10))
    for step, count in enumerate((3, 4, 6, 12, 1)):  # over the end of a pass too
        shown = peek(sampler, count, step)
        assert (sampler.state_dict(), sampler.metrics()) == (twin.state_dict(), twin.metrics())
        assert ids(sampler.next(count, step)) == ids(shown) == ids(twin.next(count, step))
