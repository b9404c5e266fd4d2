"""Token log-probabilities: ban, temperature, entropy, chunks."""

from __future__ import annotations

import math

import torch

from mmreason.objective import token_logprobs
from tests.objective.build import grad


def test_by_hand():
    logits = torch.tensor([[0.0, math.log(3), 5.0]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]), banned_ids=[2])
    assert math.isclose(logprobs.item(), math.log(3 / 4), abs_tol=1e-6)
    assert math.isclose(entropy.item(), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), abs_tol=1e-6)
    cooled, _ = token_logprobs(logits, torch.tensor([1]), banned_ids=[2], temperature=0.5)
    assert math.isclose(cooled.item(), math.log(9 / 10), abs_tol=1e-6)
    free, _ = token_logprobs(logits, torch.tensor([1]))
    assert free.item() < logprobs.item()


def test_a_banned_target_is_finite_and_so_is_its_gradient():
    logits = torch.randn(4, 6, requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([0, 5, 5, 1]), banned_ids=[5])
    (logprobs * torch.tensor([1.0, 0.0, 0.0, 1.0])).sum().backward()
    assert torch.isfinite(logprobs).all() and torch.isfinite(entropy).all()
    assert torch.isfinite(grad(logits)).all() and not grad(logits)[:, 5].any()


def test_chunks_change_nothing():
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (2, 7))
    results = []
    for chunk in (None, 1, 3, 5, 100):
        logits = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logprobs, entropy = token_logprobs(logits, ids, [3], 0.7, chunk)
        (logprobs * torch.arange(14.0).view(2, 7)).sum().backward()
        results.append((logprobs.detach(), entropy, grad(logits)))
        assert logprobs.shape == entropy.shape == ids.shape and not entropy.requires_grad
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_agrees_with_log_softmax_in_half_precision():
    logits = torch.randn(5, 9).bfloat16()
    ids = torch.arange(5)
    logprobs, _ = token_logprobs(logits, ids)
    expected = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)
