"""Advantages by hand: group, batch and no scale; what does not apply; constant groups."""

from __future__ import annotations

import math

import pytest
import torch

from mmreason.objective import advantages


def test_group_scale_by_hand():
    # rewards 1, 0, 0, 0: mean .25, deviations .75 and -.25, sum of squares .75, unbiased std sqrt(.75/3) = .5
    (got,) = advantages([[1, 0, 0, 0]])
    assert got == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3], abs=1e-12)


def test_a_biased_deviation_would_differ():
    (got,) = advantages([[1, 0, 0, 0]])
    biased = math.sqrt(0.75 / 4)
    assert got[0] != pytest.approx(0.75 / (biased + 1e-4), rel=0.05)


def test_agrees_with_torch():
    rewards = torch.tensor([[0.5, 1.25, 0.0, 2.0], [3.0, 1.0, 1.0, 1.5]], dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    for scale, std in (("group", rewards.std(1, keepdim=True)), ("batch", rewards.std())):
        expected = (centred / (std + 1e-4)).tolist()
        for row, wanted in zip(advantages(rewards.tolist(), scale), expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-12)
    assert advantages(rewards.tolist(), "none") == [pytest.approx(row) for row in centred.tolist()]


def test_none_takes_no_part():
    (with_none,) = advantages([[1, None, 0]])
    (without,) = advantages([[1, 0]])
    assert with_none == [without[0], 0.0, without[1]]
    assert with_none[0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))
    assert advantages([[None, None]]) == [[0.0, 0.0]]


def test_none_is_left_out_of_the_batch_deviation():
    got = advantages([[2, None, 0], [1, 1]], "batch")
    std = math.sqrt(2 / 3)  # of 2, 0, 1, 1
    assert got == [pytest.approx([1 / (std + 1e-4), 0, -1 / (std + 1e-4)]), [0.0, 0.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_teach_exactly_nothing(scale: str):
    got = advantages([[0.1, 0.1, 0.1], [7.0], [1, 0, 1, 0]], scale)
    assert got[0] == [0.0] * 3 and got[1] == [0.0]
    assert all(a != 0 for a in got[2])


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match="'std'.*batch"):
        advantages([[1, 0]], "std")
