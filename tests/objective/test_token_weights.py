"""TW-GRPO's weights on the specification's worked examples."""

from __future__ import annotations

import pytest
import torch

from mmreason.objective import token_weights_tw, tw_divergence
from tests.objective.build import grad

EVEN, UP, DOWN = [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]
FULL = torch.tensor([[EVEN, UP, EVEN], [EVEN, DOWN, EVEN]]).log()
RAGGED = torch.tensor([[EVEN, UP, [0.8, 0.2]], [EVEN, DOWN, EVEN]]).log()
ALL = torch.ones(2, 3, dtype=torch.bool)
SHORT = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize("form", ["corrected", "released"])
def test_worked_example(form: str):
    assert tw_divergence(FULL, ALL, form).tolist() == pytest.approx([0, 1.33333, 0], abs=1e-5)
    weights = token_weights_tw(FULL, ALL, 1.7, form)
    assert weights.tolist() == [pytest.approx([1, 1.7, 1], abs=1e-6)] * 2


def test_ragged_released():
    assert tw_divergence(RAGGED, SHORT, "released").tolist() == pytest.approx(
        [0, 1.33333, 0.134537], abs=1e-5
    )
    weights = token_weights_tw(RAGGED, SHORT, 1.7, "released")
    assert weights[0].tolist() == pytest.approx([1, 1.7, 1.070632], abs=1e-5)
    assert weights[1].tolist() == pytest.approx([1, 1.7, 0], abs=1e-5)


def test_ragged_corrected_compares_only_rows_that_still_write():
    weights = token_weights_tw(RAGGED, SHORT, 1.7)
    assert weights[0].tolist() == pytest.approx([1, 1.7, 1], abs=1e-6)
    assert weights[1].tolist() == pytest.approx([1, 1.7, 0], abs=1e-6)


def test_the_released_form_lets_padding_take_the_top_weight():
    """Seven peaked rows beside one that has ended outweigh a real disagreement of four against four."""
    vocabulary = 20_000
    peaked = torch.full((8, 3, vocabulary), 0.0)
    peaked[:, :, 0] = 30.0
    peaked[4:, 0, 0], peaked[4:, 0, 1] = 0.0, 30.0
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[7, 2] = False
    released, corrected = (token_weights_tw(peaked, mask, 1.7, form)[0] for form in ("released", "corrected"))
    assert corrected.tolist() == pytest.approx([1.7, 1, 1], abs=1e-5)
    assert released[2] > released[0]


@pytest.mark.parametrize("form", ["corrected", "released"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_chunks_change_nothing(form: str, chunk: int):
    logits = torch.randn(4, 13, 17) * 3
    mask = torch.arange(13) < torch.tensor([13, 9, 5, 11])[:, None]
    plain, chunked = tw_divergence(logits, mask, form), tw_divergence(logits, mask, form, chunk)
    assert torch.equal(plain, chunked)
    assert torch.equal(
        token_weights_tw(logits, mask, 1.7, form), token_weights_tw(logits, mask, 1.7, form, chunk)
    )


def test_logits_and_logprobs_give_the_same():
    logits = torch.randn(3, 5, 7)
    mask = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(token_weights_tw(logits, mask), token_weights_tw(logits.log_softmax(-1), mask))


def test_weights_carry_no_gradient():
    """A gradient through the weights would reach the policy wherever lengths differ (the released code's fault)."""
    logits = RAGGED.clone().requires_grad_()
    weights = token_weights_tw(logits, SHORT)
    assert not weights.requires_grad
    chosen = logits.log_softmax(-1)[..., 0]
    (weights * chosen).sum().backward()
    alone = RAGGED.clone().requires_grad_()
    (torch.tensor([[1, 1.7, 1], [1, 1.7, 0]]) * alone.log_softmax(-1)[..., 0]).sum().backward()
    torch.testing.assert_close(grad(logits), grad(alone))


def test_range_and_the_neutral_cases():
    logits = torch.randn(4, 6, 9) * 5
    mask = torch.ones(4, 6, dtype=torch.bool)
    weights = token_weights_tw(logits, mask, 2.5)
    assert weights.min() == 1 and weights.max() == pytest.approx(2.5) and (weights == weights[0]).all()
    assert (token_weights_tw(logits, mask, 1.0) == 1).all()
    assert (token_weights_tw(logits[:1], mask[:1]) == 1).all()  # nobody to disagree with
    same = logits[:1].repeat(4, 1, 1)
    torch.testing.assert_close(token_weights_tw(same, mask), torch.ones(4, 6))
    with pytest.raises(ValueError, match="'paper'.*released"):
        tw_divergence(logits, mask, "paper")


def test_a_token_that_cannot_occur_does_not_poison_the_weights():
    logits = torch.randn(3, 4, 6)
    logits[..., 2] = float("-inf")
    assert torch.isfinite(token_weights_tw(logits, torch.ones(3, 4, dtype=torch.bool))).all()
