"""The importance-sampling weights of another engine's tokens, by hand, and in the real step's loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmreason.objective import Correction, correct, correction_metrics
from mmreason.objective.correction import MODES
from mmreason.types import TrainingSample
from tests.objective.test_micro_loss import BANNED, OBJECTIVE, Bigram, by_hand, micro, rows

LOG3, HALF = math.log(3.0), math.log(0.5)
OLD = torch.tensor([[LOG3, HALF, 9.0], [0.1, -0.1, 0.0]])
ACTIVE = torch.tensor([[True, True, False], [True, True, True]])
NONE = torch.zeros_like(OLD)


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        (Correction("token_truncate", 2.0), [[2.0, 0.5], [math.exp(0.1), math.exp(-0.1)]]),
        (Correction("token_truncate", 2.0, 0.8), [[2.0, 0.8], [math.exp(0.1), math.exp(-0.1)]]),
        (Correction("token_mask", 2.0), [[0.0, 0.5], [math.exp(0.1), math.exp(-0.1)]]),
        (Correction("token_mask", None, 0.8), [[3.0, 0.0], [math.exp(0.1), math.exp(-0.1)]]),
        (Correction("sequence_truncate", 1.2), [[1.2, 1.2], [1.0, 1.0]]),
        (Correction("sequence_mask", 1.2), [[0.0, 0.0], [1.0, 1.0]]),
        (Correction("token_truncate", None), [[3.0, 0.5], [math.exp(0.1), math.exp(-0.1)]]),
    ],
    ids=lambda value: value.mode if isinstance(value, Correction) else "",
)
def test_weights_by_hand(correction: Correction, weights: list[list[float]]):
    got, _ = correct(OLD, NONE, ACTIVE, correction)
    assert got is not None
    torch.testing.assert_close(got[:, :2], torch.tensor(weights))


def test_measures_by_hand():
    weights, parts = correct(OLD, NONE, ACTIVE, Correction("none", 2.0))
    assert weights is None
    told = correction_metrics(parts)
    mean = (LOG3 + math.log(2) + 0.2) / 5  # the token that is not learned, 9 nats off, counts nowhere
    assert told["sampling/sampling_logp_difference/mean"] == pytest.approx(mean)
    assert told["sampling/sampling_logp_difference/max"] == pytest.approx(LOG3)
    ratios = 3 + 0.5 + math.exp(0.1) + math.exp(-0.1) + 1
    assert told["sampling/importance_sampling_ratio/mean"] == pytest.approx(ratios / 5)
    assert told["sampling/importance_sampling_ratio/max"] == pytest.approx(3.0)
    assert told["sampling/outside_ratio"] == pytest.approx(1 / 5)
    assert correction_metrics({"loss": 1.0}) == {}


def test_a_token_that_the_engine_held_for_impossible_stays_finite():
    weights, parts = correct(torch.zeros(1, 1), torch.full((1, 1), -9999.0), ACTIVE[:1, :1], Correction())
    assert weights is not None and weights.item() == 2.0
    assert all(math.isfinite(value) for value in parts.values())


def sampled(given: list[TrainingSample]) -> list[TrainingSample]:
    """The policy rows with an engine's values near the stored old ones."""
    noise = torch.Generator().manual_seed(9)
    out = []
    for row in given:
        if row.old_logprobs is not None:
            moved = row.old_logprobs + torch.randn(len(row), generator=noise)
            row = replace(row, sampling_logprobs=moved)
        out.append(row)
    return out


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_the_step_weighs_the_policy_term_alone(mode: str):
    model, given = Bigram(), sampled(rows())
    loss, parts = micro(model, given, replace(OBJECTIVE, correction=Correction(mode, 1.5, 0.7)))

    def rho(row: int, token: int) -> float:
        of = given[row]
        assert of.old_logprobs is not None and of.sampling_logprobs is not None
        difference = of.old_logprobs - of.sampling_logprobs
        log_ratio = difference[2:].sum() if mode.startswith("sequence") else difference[token]
        ratio = math.exp(float(log_ratio))
        return min(max(ratio, 0.7), 1.5) if mode.endswith("truncate") else ratio * (0.7 <= ratio <= 1.5)

    def weight(row: int, token: int) -> float:
        return 1.0 if row == 3 else rho(row, token)

    assert loss.item() == pytest.approx(by_hand(model, given, weight), rel=1e-5)
    assert loss.item() != pytest.approx(by_hand(model, given, weight, weigh_kl=True), rel=1e-4)
    assert loss.item() != pytest.approx(by_hand(model, given), rel=1e-4)
    assert parts["sampling/tokens"] == 2 + 4 + 3  # the SFT row's tokens were sampled by nobody
    assert parts["sampling/outside"] > 0


def test_measuring_alone_leaves_the_loss():
    model, given = Bigram(), sampled(rows())
    loss, parts = micro(model, given, replace(OBJECTIVE, correction=Correction("none")))
    assert loss.item() == micro(model, given)[0].item()
    assert parts["sampling/difference"] > 0


def test_first_use_is_held_against_the_present_policy():
    """Without stored old values the trainer's own, of the same weights, stand in the ratio."""
    model = Bigram()
    given = [replace(row, old_logprobs=None, ref_logprobs=None) for row in sampled(rows())[:3]]
    _, parts = micro(model, given, replace(OBJECTIVE, correction=Correction("none")))
    scores = (model.table.detach() / OBJECTIVE.temperature).index_fill(1, torch.tensor([BANNED]), -torch.inf)
    table = scores.log_softmax(-1)
    found = 0.0
    for row in given:
        ids = row.rendered.ids
        assert row.sampling_logprobs is not None
        found += float((table[ids[1:-1], ids[2:]] - row.sampling_logprobs[2:]).abs().sum())
    assert parts["sampling/difference"] == pytest.approx(found, rel=1e-5)


def test_no_row_with_sampling_values_tells_the_same_sums():
    """A rank whose rows came from nowhere must take part in the same reductions as the others."""
    model = Bigram()
    _, with_values = micro(model, sampled(rows()), replace(OBJECTIVE, correction=Correction()))
    _, without = micro(model, rows(), replace(OBJECTIVE, correction=Correction()))
    assert without.keys() == with_values.keys()
    assert without["sampling/tokens"] == 0
