"""One draw: the hash is SplitMix64's, the filters are transformers' own, the frequencies those of the policy."""

from __future__ import annotations

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mmreason.rollout import sampling
from mmreason.rollout.sampling import SamplingParams, draw, narrowed, row_seeds, uniforms

NONE = torch.tensor([], dtype=torch.long)


def test_the_hash_is_splitmix64() -> None:
    """Its published first outputs of seed 0 (and of the seed that stands one gamma further)."""
    known = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    for step, word in enumerate(known):
        assert float(uniforms(torch.zeros(1, dtype=torch.int64), step)) == (word >> 11) * 2.0**-53
    gamma = torch.tensor([0x9E3779B97F4A7C15 - 2**64])
    assert float(uniforms(gamma, 0)) == (known[1] >> 11) * 2.0**-53


def test_uniforms_fill_the_unit_interval() -> None:
    numbers = uniforms(torch.arange(40_000), 3)
    assert 0 <= numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers.float(), 20, 0, 1)
    assert (
        (counts - 2000) ** 2 / 2000
    ).sum() < 45  # chi-square of 19 degrees of freedom: 0.1% lie above 43.8
    steps = torch.stack([uniforms(torch.arange(4000), step) for step in range(2)])
    assert abs(float(torch.corrcoef(steps)[0, 1])) < 0.05


def test_tokens_are_drawn_as_often_as_the_policy_says() -> None:
    weights = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    rows = weights.log().expand(40_000, -1)
    tokens, logprobs = draw(rows, NONE, torch.arange(40_000), 0, SamplingParams(1))
    shares = torch.bincount(tokens, minlength=6) / 40_000
    assert shares[1] == shares[5] == 0
    assert (shares - weights).abs().max() < 0.01  # four standard deviations of the first
    torch.testing.assert_close(logprobs, weights.log()[tokens])


@pytest.mark.parametrize("greedy", [True, False])
def test_the_ban_comes_first_and_the_temperature_then(greedy: bool) -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0]]).repeat(500, 1)
    params = SamplingParams(1, temperature=0.5, greedy=greedy)
    tokens, logprobs = draw(logits, torch.tensor([2]), torch.arange(500), 0, params)
    odds = torch.tensor([1.0, 2.0] if greedy else [2.0, 4.0]).log_softmax(-1)  # greedy knows no temperature
    assert set(tokens.tolist()) == ({1} if greedy else {0, 1})
    torch.testing.assert_close(logprobs, odds[tokens])
    assert float(logits[0, 2]) == 5.0  # what came in stays


def test_filters_narrow_the_draw_and_not_the_logprobs() -> None:
    rows = torch.randn(300, 20)
    tokens, logprobs = draw(rows, NONE, torch.arange(300), 0, SamplingParams(1, top_k=2))
    best = rows.topk(2).indices
    assert (tokens[:, None] == best).any(-1).all() and (tokens != best[:, 0]).any()
    torch.testing.assert_close(logprobs, rows.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])


def test_a_weight_of_nothing_is_never_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a number so close to 1 that it rounds up to the sum."""
    monkeypatch.setattr(sampling, "uniforms", lambda seeds, step: torch.ones(len(seeds)).double())
    rows = torch.tensor([[0.0, 1.0, -torch.inf]])
    tokens, _ = draw(rows, NONE, torch.zeros(1).long(), 0, SamplingParams(1))
    assert tokens.tolist() == [1]


@pytest.mark.parametrize("top_k", [0, 1, 3, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.6])
def test_filters_are_transformers_own(top_k: int, top_p: float, min_p: float) -> None:
    rows = (3 * torch.randn(50, 20)).log_softmax(-1)
    ours = narrowed(rows.exp(), SamplingParams(1, top_k=top_k, top_p=top_p, min_p=min_p))
    theirs = rows
    for warper in (
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p < 1 else None,
        MinPLogitsWarper(min_p) if min_p else None,
    ):
        theirs = theirs if warper is None else warper(None, theirs)
    assert torch.equal(ours > 0, theirs.isfinite())
    assert torch.equal(ours[ours > 0], rows.exp()[ours > 0])


def test_seeds_come_from_the_global_generator() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = row_seeds(8)
    torch.set_rng_state(state)
    assert torch.equal(row_seeds(8), first) and len(set(first.tolist())) == 8
    assert not torch.equal(row_seeds(8), first)
