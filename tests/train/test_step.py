"""The step on a real tiny model against losses written out in plain torch, its mutants, and what must not move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data.loader import collate
from mmreason.model.load import Loaded, gradient_checkpointing, load_model
from mmreason.model.parts import parameter_groups
from mmreason.objective import aggregation, tw_grpo, tw_weights
from mmreason.schema import ModelConfig, SFTStage
from mmreason.train.distributed import make_backend
from mmreason.train.optim import make_optimizer, make_schedule
from mmreason.train.scoring import Micro
from mmreason.train.step import (
    MAX_SKIPPED_STEPS,
    Objective,
    Trainer,
    fixed_logprobs,
    micro_loss,
    shown_weights,
    train_step,
)
from mmreason.train.together import blank
from mmreason.types import TrainingSample
from tests.train.rows import grpo_rows, sft_rows

Grads = dict[str, torch.Tensor]
TEMPERATURE, LOW, HIGH = 0.7, 0.2, 0.28
LOSS_TYPES = ("dapo", "grpo", "dr_grpo")


@pytest.fixture
def loaded(assembled_folder: Path) -> Loaded:
    return load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)


def trainer_of(
    loaded: Loaded, *, optimizer: Any = "sgd", max_tokens: int = 10_000, rate: float = 0.5
) -> Trainer:
    config = ModelConfig(model_name_or_path="unused")
    stage = SFTStage(type="sft", name="s", data=[], learning_rate=rate, optimizer=optimizer)
    groups = parameter_groups(loaded.model, loaded.family, config, rate, 0.0)
    return Trainer(
        model=loaded.model,
        family=loaded.family,
        backend=make_backend("plain"),
        optimizer=make_optimizer(groups, stage),
        schedule=make_schedule("constant", 0.0),
        pad_id=0,
        max_grad_norm=1e9,
        max_tokens=max_tokens,
    )


def objective_of(loaded: Loaded) -> Objective:
    return Objective(loaded.family.placeholder_ids, TEMPERATURE, LOW, HIGH)


def grpo_pair(loaded: Loaded, loss_type: str) -> list[TrainingSample]:
    """Two groups (one with a picture) whose old values lie around the present ones, so that some tokens clip."""
    rows = grpo_rows(loaded.processor, 4, loss_type)
    trainer = trainer_of(loaded)
    generator = torch.Generator().manual_seed(1)
    now = fixed_logprobs(loaded.model, trainer, rows, objective_of(loaded))
    drift = [0.5 * torch.randn(len(row), generator=generator) for row in rows]
    return [
        replace(r, old_logprobs=n + d, ref_logprobs=n - d) for r, n, d in zip(rows, now, drift, strict=True)
    ]


# --- the same numbers, written out row by row: no packing, no padding, no slicing of logits


def all_logprobs(
    loaded: Loaded, row: TrainingSample, banned: Sequence[int], temperature: float, late: bool = False
) -> torch.Tensor:
    """log p(ids[t] | before) at index t - 1, [T - 1], by torch.log_softmax over the whole row."""
    rendered = row.rendered
    inputs = {"input_ids": rendered.ids[None], "attention_mask": torch.ones_like(rendered.ids)[None]}
    if loaded.family.token_types:
        inputs["mm_token_type_ids"] = rendered.token_types[None]
    logits = loaded.model(**inputs, **rendered.media).logits[0] / temperature
    logits = logits[1:] if late else logits[:-1]  # late: off by one, a token is predicted from itself
    keep = logits.clone()
    keep[:, list(banned)] = -math.inf
    normaliser = keep.logsumexp(-1)
    return logits.gather(-1, rendered.ids[1:, None])[:, 0] - normaliser


def sft_by_hand(
    loaded: Loaded, rows: Sequence[TrainingSample], *, unmasked: bool = False, late: bool = False
) -> torch.Tensor:
    """Mean cross-entropy over the tokens that the assistant wrote."""
    total, count = torch.zeros(()), 0
    for row in rows:
        logprobs = all_logprobs(loaded, row, (), 1.0, late)
        mask = torch.ones_like(row.rendered.sampled[1:]) if unmasked else row.rendered.sampled[1:]
        total = total - (logprobs * mask).sum()
        count += int(mask.sum())
    return total / count


def grpo_by_hand(
    loaded: Loaded,
    rows: Sequence[TrainingSample],
    loss_type: str,
    *,
    banned: bool = True,
    temperature: float = TEMPERATURE,
    unmasked: bool = False,
    weight: float = 1.0,
    weigh_kl: bool = False,
) -> torch.Tensor:
    """-min(r A, clip(r) A) + beta k3 under each aggregation; completions are all ids after the prompt."""
    per_row, lengths = [], []
    for row in rows:
        assert row.old_logprobs is not None and row.ref_logprobs is not None
        ban = loaded.family.placeholder_ids if banned else ()
        logp = all_logprobs(loaded, row, ban, temperature)
        mask = row.rendered.sampled[1:].float()
        advantage, beta = float(row.rl[row.rl != 0][0]), float(row.kl.max())
        ratio = torch.exp((logp - row.old_logprobs[1:]) * (torch.ones_like(mask) if unmasked else mask))
        policy = -torch.min(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage)
        d = row.ref_logprobs[1:] - logp
        kl = beta * (d.exp() - d - 1)
        token = weight * policy + (weight if weigh_kl else 1.0) * kl
        where = torch.ones_like(mask) if unmasked else mask
        per_row.append((torch.where(where > 0, token, 0.0)).sum())
        lengths.append(float(where.sum()))
    if loss_type == "dapo":
        return torch.stack(per_row).sum() / sum(lengths)
    scaled = [r / (n if loss_type == "grpo" else 32) for r, n in zip(per_row, lengths, strict=True)]
    return torch.stack(scaled).mean()


def grads(loaded: Loaded, loss: Callable[[], torch.Tensor]) -> tuple[float, Grads]:
    loaded.model.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    out = {n: p.grad.clone() for n, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad(set_to_none=True)
    return float(value.detach()), out


def step_grads(trainer: Trainer, rows: list[TrainingSample], objective: Objective) -> tuple[float, Grads]:
    """Loss and gradient of the real step: with SGD, rate 0.5 and no momentum yet, half the gradient is taken off."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    metrics = train_step(trainer, rows, objective, 0.0)
    after = dict(trainer.model.named_parameters())
    return metrics["loss"], {n: (before[n] - after[n].detach()) / 0.5 for n in before}


def difference(one: Grads, other: Grads) -> float:
    scale = math.sqrt(sum(float((g**2).sum()) for g in other.values()))
    return math.sqrt(sum(float(((one[n] - g) ** 2).sum()) for n, g in other.items())) / scale


# --- values and gradients


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_sft_is_the_mean_over_assistant_tokens(loaded: Loaded, max_tokens: int) -> None:
    rows = sft_rows(loaded.processor, 2)  # one with a picture, one without, of different lengths
    value, wanted = grads(loaded, lambda: sft_by_hand(loaded, rows))
    for mistake in ({"late": True}, {"unmasked": True}):
        wrong, gradient = grads(loaded, partial(sft_by_hand, loaded, rows, **mistake))
        assert wrong != pytest.approx(value, rel=1e-4) and difference(gradient, wanted) > 0.1
    loss, got = step_grads(trainer_of(loaded, max_tokens=max_tokens), rows, Objective())
    assert loss == pytest.approx(value, rel=1e-5)
    assert (
        difference(got, wanted) < 2e-5
    )  # measured 4e-7 (GRPO 2e-6), in part from taking the gradient off parameters


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_grpo_is_the_clipped_ratio_with_k3(loaded: Loaded, loss_type: str, max_tokens: int) -> None:
    rows = grpo_pair(loaded, loss_type)
    value, wanted = grads(loaded, lambda: grpo_by_hand(loaded, rows, loss_type))
    loss, got = step_grads(trainer_of(loaded, max_tokens=max_tokens), rows, objective_of(loaded))
    assert loss == pytest.approx(value, rel=1e-5)
    assert difference(got, wanted) < 2e-5


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_mistakes_in_grpo_would_show(loaded: Loaded, loss_type: str) -> None:
    rows = grpo_pair(loaded, loss_type)
    value, wanted = grads(loaded, lambda: grpo_by_hand(loaded, rows, loss_type))
    other = LOSS_TYPES[(LOSS_TYPES.index(loss_type) + 1) % 3]
    mutants: list[Callable[[], torch.Tensor]] = [
        lambda: grpo_by_hand(loaded, rows, loss_type, banned=False),
        lambda: grpo_by_hand(loaded, rows, loss_type, temperature=1.0),
        lambda: grpo_by_hand(loaded, rows, loss_type, unmasked=True),
        lambda: grpo_by_hand(loaded, rows, other),
    ]
    for mutant in mutants:
        wrong, gradient = grads(loaded, mutant)
        assert wrong != pytest.approx(value, rel=1e-4) and difference(gradient, wanted) > 1e-3


def test_a_denominator_for_each_micro_batch_would_show(loaded: Loaded) -> None:
    """The mean of means, which weighs a token by the company it is in."""
    rows = sft_rows(loaded.processor, 6)
    value, wanted = grads(loaded, lambda: sft_by_hand(loaded, rows))
    wrong, gradient = grads(loaded, lambda: torch.stack([sft_by_hand(loaded, [row]) for row in rows]).mean())
    assert difference(gradient, wanted) > 0.05
    loss, got = step_grads(trainer_of(loaded, max_tokens=1), rows, Objective())
    assert loss == pytest.approx(value, rel=1e-5) and loss != pytest.approx(wrong, rel=1e-4)
    assert difference(got, wanted) < 2e-5


def test_shown_weights_are_those_that_the_step_takes(loaded: Loaded) -> None:
    """Whatever the micro-batches: held against what the loss asked for, token by token."""
    rows = grpo_rows(loaded.processor, 6)
    taken: list[torch.Tensor] = []

    def weigh(divergence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        taken.append(tw_weights(divergence, mask))
        return taken[-1]

    objective = replace(objective_of(loaded), token_weights=replace(tw_grpo(), weights=weigh))
    whole = shown_weights(trainer_of(loaded), rows, objective)
    split = shown_weights(trainer_of(loaded, max_tokens=1), rows, objective)
    taken.clear()
    for first in range(0, len(rows), 2):  # a group at a time
        micro_loss(trainer_of(loaded), Micro(collate(rows[first : first + 2], 0), None), objective)
    for group, expected in enumerate(taken):
        for i, line in enumerate(expected, start=2 * group):
            learned = rows[i].aggregation > 0
            assert len(whole[i]) == len(rows[i]) and not whole[i][~learned].any()
            assert torch.allclose(whole[i][learned], line[: int(learned.sum())], atol=1e-4)
            assert torch.allclose(split[i], whole[i], atol=1e-4)
    spread = torch.cat([line[line > 0] for line in whole])
    assert 1.0 <= spread.min() < 1.05 and spread.max() == pytest.approx(1.7)


def test_token_weights_leave_the_kl_alone(loaded: Loaded) -> None:
    rows = grpo_pair(loaded, "dapo")

    def half_more(divergence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return 1.5 * mask.float()

    objective = replace(objective_of(loaded), token_weights=replace(tw_grpo(), weights=half_more))
    value, wanted = grads(loaded, partial(grpo_by_hand, loaded, rows, "dapo", weight=1.5))
    wrong = float(grpo_by_hand(loaded, rows, "dapo", weight=1.5, weigh_kl=True).detach())
    assert wrong != pytest.approx(value, rel=1e-3)
    loss, got = step_grads(trainer_of(loaded), rows, objective)
    assert loss == pytest.approx(value, rel=1e-5) and difference(got, wanted) < 2e-5


def test_dr_grpo_is_not_dapo(loaded: Loaded) -> None:
    sampled = torch.tensor([False, True, True])
    assert aggregation(sampled, "dr_grpo", 8)[0].tolist() == [0.0, 0.125, 0.125]
    rows = {kind: grpo_pair(loaded, kind) for kind in ("dapo", "dr_grpo")}
    losses = [float(grpo_by_hand(loaded, rows[kind], kind).detach()) for kind in rows]
    assert losses[0] != pytest.approx(losses[1], rel=0.1)


# --- other ways to the same gradient


def test_recomputed_activations_give_the_same_gradient(loaded: Loaded, assembled_folder: Path) -> None:
    rows = sft_rows(loaded.processor, 2)
    plain, wanted = step_grads(trainer_of(loaded), rows, Objective())
    again = load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)
    gradient_checkpointing(again.model, True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.model.modules())
    loss, got = step_grads(trainer_of(again), rows, Objective())
    assert loss == pytest.approx(plain, rel=1e-6) and difference(got, wanted) < 2e-5


def test_bf16_is_near_and_leaves_float32_weights(loaded: Loaded, assembled_folder: Path) -> None:
    rows = grpo_pair(loaded, "dapo")
    plain, wanted = step_grads(trainer_of(loaded), rows, objective_of(loaded))
    again = load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)
    trainer = trainer_of(again)
    trainer.bf16 = True
    loss, got = step_grads(trainer, rows, objective_of(loaded))
    assert loss == pytest.approx(plain, abs=0.02) and 1e-5 < difference(got, wanted) < 0.05  # measured 0.008
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}


# --- rows that teach nothing


def test_blank_rows_contribute_nothing(loaded: Loaded) -> None:
    rows = sft_rows(loaded.processor, 2)
    trainer = trainer_of(loaded)
    loss, parts = micro_loss(trainer, Micro(collate([blank(0)], 0), None), Objective())
    loss.backward()
    assert float(loss.detach()) == 0.0 and parts["tokens"] == 0.0
    assert all(p.grad is None or not p.grad.any() for p in loaded.model.parameters())
    loaded.model.zero_grad(set_to_none=True)
    _, alone = step_grads(trainer_of(loaded, max_tokens=1), rows, Objective())
    again = load_model(
        ModelConfig(model_name_or_path=str(loaded.model.name_or_path)), texts=lambda: [], seed=0
    )
    _, accompanied = step_grads(trainer_of(again, max_tokens=1), [*rows, blank(0), blank(0)], Objective())
    assert all(torch.equal(alone[n], accompanied[n]) for n in alone)


class BusyBackend(type(make_backend("plain"))):  # type: ignore[misc]
    """One rank of two, where the other has three micro-batches and its share of the denominator."""

    def max(self, value: int) -> int:
        return max(value, 3)

    def sum(self, value: float) -> float:
        return value + 7.0


def test_a_rank_without_rows_takes_part(loaded: Loaded) -> None:
    """A gate may leave one rank nothing; it runs as many backward passes as the others and changes nothing."""
    trainer = trainer_of(loaded)
    trainer.backend = BusyBackend(torch.device("cpu"))
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    metrics = train_step(trainer, [], Objective(), 0.0)
    assert metrics["grad_norm"] == 0.0 and metrics["rows"] == 3 + 7
    assert all(torch.equal(before[n], p) for n, p in loaded.model.named_parameters())


# --- a gradient that is not finite


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(loaded: Loaded, poison: float) -> None:
    trainer = trainer_of(loaded, optimizer="adamw", rate=1e-3)
    rows = sft_rows(loaded.processor, 2)
    train_step(trainer, rows, Objective(), 0.0)  # moments exist
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    moments = [{k: v.clone() for k, v in state.items()} for state in trainer.optimizer.state.values()]
    bad = [replace(rows[0], ce=rows[0].ce * poison), rows[1]]
    metrics = train_step(trainer, bad, Objective(), 0.1)
    assert metrics["skipped_steps"] == 1.0 and not math.isfinite(metrics["grad_norm"])
    assert all(torch.equal(before[n], p) for n, p in loaded.model.named_parameters())
    for state, old in zip(trainer.optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(state[k], old[k]) for k in old)
    assert all(p.grad is None for p in loaded.model.parameters())
    assert train_step(trainer, rows, Objective(), 0.2)["skipped_steps"] == 0.0
    assert trainer.skipped_in_a_row == 0


def test_five_skipped_steps_in_a_row_stop_the_run(loaded: Loaded) -> None:
    trainer = trainer_of(loaded)
    rows = sft_rows(loaded.processor, 1)
    bad = [replace(rows[0], ce=rows[0].ce * math.nan)]
    for _ in range(MAX_SKIPPED_STEPS - 1):
        train_step(trainer, bad, Objective(), 0.0)
    with pytest.raises(FloatingPointError, match="5 steps in a row"):
        train_step(trainer, bad, Objective(), 0.0)


# --- schedules


def test_schedules_by_hand() -> None:
    at = [0.0, 0.05, 0.1, 0.55, 1.0]
    constant, linear, cosine = (make_schedule(kind, 0.1) for kind in ("constant", "linear", "cosine"))
    assert [constant(p) for p in at[2:]] == [1.0, 1.0, 1.0]
    assert [linear(p) for p in at[2:]] == pytest.approx([1.0, 0.5, 0.0])
    assert [cosine(p) for p in at[2:]] == pytest.approx([1.0, 0.5, 0.0])
    assert cosine(0.325) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    for schedule in (constant, linear, cosine):
        assert 0 < schedule(0.0) < 0.02 and schedule(0.05) == pytest.approx(0.5, abs=0.01)
        ramp = [schedule(p / 100) for p in range(11)]
        assert ramp == sorted(ramp)
    assert [make_schedule("linear", 0.0)(p) for p in (-1.0, 0.0, 0.25, 2.0)] == [1.0, 1.0, 0.75, 0.0]


def test_parts_keep_their_own_rates(loaded: Loaded) -> None:
    config = ModelConfig(model_name_or_path="unused", vision_learning_rate=0.01)
    stage = SFTStage(type="sft", name="s", data=[], learning_rate=0.1)
    trainer = trainer_of(loaded)
    groups = parameter_groups(loaded.model, loaded.family, config, 0.1, 0.0)
    trainer.optimizer = make_optimizer(groups, stage)
    trainer.schedule = make_schedule("linear", 0.0)
    metrics = train_step(trainer, sft_rows(loaded.processor, 1), Objective(), 0.75)
    rates = {group["name"].split("/")[0]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["vision"] == pytest.approx(0.0025) and rates["llm"] == pytest.approx(0.025)
    assert metrics["learning_rate"] == pytest.approx(0.025)
