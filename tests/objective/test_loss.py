"""Streams, policy term, KL and aggregation: numbers computed by hand, and the mistakes that would change them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from mmreason.objective import aggregation, grpo_samples, k3, policy_term, sft_sample
from mmreason.types import Group, Rendered, TrainingSample, Trajectory
from tests.objective.build import grad
from tests.rewards.build import group, sample, trajectory

LOSS_TYPES = ("dapo", "grpo", "dr_grpo")
MAX_LENGTH = 8


def build(
    lengths: Sequence[int], advantages: Sequence[float], loss_type: str, beta: float = 0.0, **more
) -> list[TrainingSample]:
    made: Group = group(sample("1"), [trajectory(length=n) for n in lengths])
    options = {"mask_truncated": False, "group_id": 3, **more}
    return grpo_samples(
        made, advantages, loss_type=loss_type, beta=beta, max_completion_length=MAX_LENGTH, **options
    )


def loss_of(
    rows: Sequence[TrainingSample],
    logprobs: Sequence[torch.Tensor],
    old: Sequence[torch.Tensor] | None = None,
    ref: Sequence[torch.Tensor] | None = None,
    weights: Sequence[torch.Tensor] | None = None,
    denominator: Callable[[TrainingSample], float] = lambda row: row.count,
) -> torch.Tensor:
    """The step's formula on whole rows (`TrainingSample`), one global denominator."""
    total = torch.zeros(())
    for i, row in enumerate(rows):
        term, _ = policy_term(logprobs[i], None if old is None else old[i], row.rl, 0.2, 0.28)
        term = term if weights is None else term * weights[i]
        kl = 0.0 if ref is None else row.kl * k3(logprobs[i], ref[i])
        total = total + (row.aggregation * (term + kl - row.ce * logprobs[i])).sum()
    return total / sum(denominator(row) for row in rows)


def number(value: torch.Tensor) -> float:
    return value.detach().item()


def flat(rows: Sequence[TrainingSample], value: float = -1.0) -> list[torch.Tensor]:
    return [torch.full((len(row),), value, requires_grad=True) for row in rows]


def test_aggregation_by_hand():
    sampled = torch.tensor([False, False, True, True, False, True])
    weights, count = aggregation(sampled, "dapo", MAX_LENGTH)
    assert weights.tolist() == [0, 0, 1, 1, 0, 1] and count == 3
    weights, count = aggregation(sampled, "grpo", MAX_LENGTH)
    assert weights.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3, 0, 1 / 3]) and count == 1
    weights, count = aggregation(sampled, "dr_grpo", MAX_LENGTH)
    assert weights.tolist() == [0, 0, 1 / 8, 1 / 8, 0, 1 / 8] and count == 1
    for loss_type in LOSS_TYPES:
        weights, count = aggregation(torch.zeros(4, dtype=torch.bool), loss_type, MAX_LENGTH)
        assert weights.tolist() == [0, 0, 0, 0] and count == 0
    with pytest.raises(ValueError, match="'bnpo'.*dr_grpo"):
        aggregation(sampled, "bnpo", MAX_LENGTH)


# Completions of 1 and 3 tokens with advantages 1 and -2, on policy: token losses -1 | 2 2 2.
BY_HAND = {"dapo": (-1 + 6) / 4, "grpo": (-1 + 2) / 2, "dr_grpo": (-1 / 8 + 6 / 8) / 2}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_policy_loss_by_hand(loss_type: str):
    rows = build([1, 3], [1.0, -2.0], loss_type)
    assert number(loss_of(rows, flat(rows))) == pytest.approx(BY_HAND[loss_type], abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_policy_gradient_by_hand(loss_type: str):
    rows = build([1, 3], [1.0, -2.0], loss_type)
    logprobs = flat(rows)
    loss_of(rows, logprobs).backward()
    share = {"dapo": (1 / 4, 1 / 4), "grpo": (1 / 2, 1 / 6), "dr_grpo": (1 / 16, 1 / 16)}[loss_type]
    # d/dlogp of -r A at r = 1 is -A; the two prompt tokens get nothing
    assert grad(logprobs[0]).tolist() == pytest.approx([0, 0, -1 * share[0]])
    assert grad(logprobs[1]).tolist() == pytest.approx([0, 0, *[2 * share[1]] * 3])


def test_wrong_denominators_are_seen():
    rows = build([1, 3], [1.0, -2.0], "dr_grpo")
    by_weights = loss_of(rows, flat(rows), denominator=lambda row: float(row.aggregation.sum()))
    assert number(by_weights) == pytest.approx(
        BY_HAND["dapo"], abs=1e-6
    )  # dividing by the weights undoes dr_grpo
    assert number(by_weights) != pytest.approx(BY_HAND["dr_grpo"], rel=0.1)
    rows = build([1, 3], [1.0, -2.0], "dapo")
    for wrong in (lambda row: 1.0, lambda row: float(len(row))):
        assert number(loss_of(rows, flat(rows), denominator=wrong)) != pytest.approx(BY_HAND["dapo"], rel=0.1)


def test_an_unmasked_prompt_token_is_seen():
    rows = build([1, 3], [1.0, -2.0], "dapo")
    broken = Rendered(**{**vars(rows[0].rendered), "sampled": torch.tensor([False, True, True])})
    weights, count = aggregation(broken.sampled, "dapo", MAX_LENGTH)
    mutant = TrainingSample(**{**vars(rows[0]), "aggregation": weights, "count": count, "rl": weights * 1.0})
    assert number(loss_of([mutant, rows[1]], flat(rows))) == pytest.approx((-2 + 6) / 5)
    assert number(loss_of([mutant, rows[1]], flat(rows))) != pytest.approx(BY_HAND["dapo"], rel=0.1)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_do_not_depend_on_the_split(loss_type: str):
    rows = build([1, 3, 6, 2], [1.0, -2.0, 0.5, 0.5], loss_type)
    whole, parts, means = flat(rows), flat(rows), flat(rows)
    loss_of(rows, whole).backward()
    denominator = sum(row.count for row in rows)
    for chosen in (slice(0, 1), slice(1, 4)):
        local = sum(row.count for row in rows[chosen])
        (loss_of(rows[chosen], parts[chosen]) * local / denominator).backward()
        (loss_of(rows[chosen], means[chosen]) / 2).backward()  # the usual mistake: a mean of means
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(grad(one), grad(other), rtol=1e-6)
    assert not torch.allclose(grad(whole[0]), grad(means[0]), rtol=0.1)


def test_equal_lengths_make_the_three_one_up_to_a_factor():
    grads = {}
    for loss_type in LOSS_TYPES:
        rows = build([4, 4, 4], [1.0, -2.0, 0.5], loss_type)
        logprobs = flat(rows)
        loss_of(rows, logprobs).backward()
        grads[loss_type] = torch.stack([grad(p) for p in logprobs])
    assert torch.allclose(grads["dapo"], grads["grpo"])
    assert torch.allclose(grads["dr_grpo"], grads["dapo"] * 4 / MAX_LENGTH)


def test_dr_grpo_is_not_dapo_on_unequal_lengths():
    shares = {}
    for loss_type in ("dapo", "dr_grpo"):
        per_row = []
        for lengths in ([1, 3], [3, 3]):
            rows = build(lengths, [1.0, -2.0], loss_type)
            logprobs = flat(rows)
            loss_of(rows, logprobs).backward()
            per_row.append(float(grad(logprobs[1])[2]))
        shares[loss_type] = per_row
    assert shares["dr_grpo"][0] == shares["dr_grpo"][1]  # a token's weight does not hang on the other rows
    assert shares["dapo"][0] == pytest.approx(shares["dapo"][1] * 6 / 4)


def test_clipping_by_hand():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 0.0])
    ratios = torch.tensor([1.5, 0.5, 0.5, 1.5, 1.25, 0.85, 9.0])
    logprobs = ratios.log().requires_grad_()
    loss, clip = policy_term(logprobs, torch.zeros(7), advantages, 0.2, 0.28)
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 0.8, 1.5, -1.25, 0.85, 0.0])
    assert clip["clip_ratio/low_mean"].tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert clip["clip_ratio/high_mean"].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert clip["clip_ratio/region_mean"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    loss.sum().backward()
    assert grad(logprobs).tolist() == pytest.approx([0, -0.5, 0, 1.5, -1.25, 0.85, 0])
    symmetric, _ = policy_term(logprobs, torch.zeros(7), advantages, 0.2, 0.2)
    assert symmetric[4].item() == pytest.approx(-1.2)  # clip-higher gave this token more room


def test_the_policy_term_is_finite_where_nothing_is_learned():
    logprobs = torch.tensor([90.0, -1.0], requires_grad=True)
    loss, _ = policy_term(logprobs, torch.tensor([-90.0, -1.0]), torch.tensor([0.0, 1.0]), 0.2, 0.2)
    loss.sum().backward()
    assert loss.tolist() == [0, -1] and grad(logprobs).tolist() == [0, -1]


def test_on_policy_ratio_is_one_with_gradient():
    logprobs = torch.tensor([-2.0], requires_grad=True)
    loss, _ = policy_term(logprobs, None, torch.tensor([3.0]), 0.2, 0.2)
    loss.sum().backward()
    assert loss.item() == -3 and grad(logprobs).item() == -3


def test_k3_by_hand():
    policy = torch.tensor([0.0, math.log(2), -1.0], requires_grad=True)
    got = k3(policy, torch.tensor([0.0, 0.0, 0.0]))
    # d = ref - policy = 0, -ln 2, 1: exp(d) - d - 1
    assert got.tolist() == pytest.approx([0, 0.5 + math.log(2) - 1, math.e - 2], abs=1e-6)
    got.sum().backward()
    assert grad(policy).tolist() == pytest.approx([0, 0.5, 1 - math.e], abs=1e-6)
    far = torch.tensor([-500.0], requires_grad=True)
    k3(far, torch.zeros(1)).sum().backward()
    assert torch.isfinite(grad(far)).all()


def test_token_weights_leave_the_kl_alone():
    rows = build([2], [1.0], "dapo", beta=0.5)
    logprobs, ref = flat(rows), [torch.zeros(4)]
    weights = [torch.full((4,), 1.7)]
    kl = 0.5 * (math.e - 2)  # policy -1, reference 0
    assert number(loss_of(rows, logprobs, ref=ref, weights=weights)) == pytest.approx(-1.7 + kl, abs=1e-6)
    mutant = 1.7 * (-1 + kl)
    assert number(loss_of(rows, logprobs, ref=ref, weights=weights)) != pytest.approx(mutant, rel=0.05)


def test_kl_acts_where_all_rewards_are_equal():
    rows = build([2], [0.0], "dapo", beta=0.5)
    assert number(loss_of(rows, flat(rows), ref=[torch.zeros(4)])) == pytest.approx(0.5 * (math.e - 2))


def test_sft_streams():
    ids = torch.tensor([5, 7, 9, 2])
    sampled = torch.tensor([False, False, True, True])
    rendered = Rendered("r", ids, torch.ones(4, dtype=torch.int8), sampled, ids * 0)
    row = sft_sample(rendered)
    assert row.ce.tolist() == row.aggregation.tolist() == [0, 0, 1, 1] and row.count == 2
    assert not row.rl.any() and not row.kl.any() and row.group == -1
    logprobs = torch.tensor([-9.0, -9.0, -0.5, -1.5], requires_grad=True)
    loss = loss_of([row], [logprobs])
    loss.backward()
    assert loss.item() == 1.0 and grad(logprobs).tolist() == [0, 0, -0.5, -0.5]


def test_grpo_streams_keep_the_masks_they_were_given():
    injected = Trajectory(
        torch.tensor([8, 4, 2]), torch.tensor([True, False, True]), "", "stop", accuracy=1.0, reward=1.0
    )
    made = group(sample("1"), [injected, trajectory(length=2, finish="length")])
    rows = grpo_samples(
        made,
        [1.5, -1.5],
        loss_type="grpo",
        beta=0.1,
        max_completion_length=8,
        mask_truncated=True,
        group_id=3,
    )
    first, cut = rows
    assert first.rendered.ids.tolist() == [5, 7, 8, 4, 2]
    assert first.rendered.sampled.tolist() == [False, False, True, False, True]
    assert first.rendered.roles.tolist() == [1, 1, 2, 2, 2]
    assert first.rl.tolist() == [0, 0, 1.5, 0, 1.5]
    assert first.kl.tolist() == pytest.approx([0, 0, 0.1, 0, 0.1])
    assert first.aggregation.tolist() == [0, 0, 0.5, 0, 0.5] and first.count == 1
    assert [row.group for row in rows] == [3, 3]
    assert not cut.aggregation.any() and not cut.rl.any() and not cut.kl.any() and cut.count == 0
    kept = grpo_samples(
        made,
        [1.5, -1.5],
        loss_type="grpo",
        beta=0.1,
        max_completion_length=8,
        mask_truncated=False,
        group_id=3,
    )
    assert kept[1].rl.tolist() == [0, 0, -1.5, -1.5] and kept[1].count == 1
