"""The training step: count -> forward/backward -> clip -> update -> metrics. Blind to the algorithm.

Rows arrive with their per-token streams; the step multiplies and sums. SFT and GRPO both end here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from mmreason.model.family import Family, out_of_training
from mmreason.objective import correct, correction_metrics, k3, policy_term
from mmreason.train.distributed import Backend
from mmreason.train.micro import Plan, Sharing, build, plan
from mmreason.train.offload import offloaded
from mmreason.train.scoring import Micro, Objective, Scores, scores
from mmreason.train.shared_check import Kind, check_shared
from mmreason.train.together import ShowKind, together
from mmreason.types import TrainingSample


@dataclass
class Trainer:
    """What the step updates: the model (and its wrapped form), the optimizer and the schedule."""

    model: Any
    family: Family
    backend: Backend
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]  # progress 0..1 -> learning-rate factor
    pad_id: int
    max_grad_norm: float
    max_tokens: int
    bf16: bool = False  # forward and backward in bfloat16 autocast; weights and optimizer stay float32
    sharing: Sharing = field(default_factory=Sharing)  # whether rows are packed, sharing prompts
    check: bool = True  # the first packed rows of each kind are held against the plain way
    offload: bool = False  # activations wait in the CPU's memory for the backward pass
    checked: set[Kind] = field(default_factory=set)  # the kinds of which that is done
    show: ShowKind | None = (
        None  # rows that let a rank run the encoders of others; needed where ranks go in lockstep
    )
    kinds: set[str] = field(
        default_factory=set
    )  # of media that any rank has shown, where ranks go in lockstep
    wrapped: nn.Module = field(init=False)
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.wrapped = self.backend.wrap(self.model, self.optimizer, self.max_grad_norm)


MAX_SKIPPED_STEPS = 5


def train_step(
    trainer: Trainer, rows: Sequence[TrainingSample], objective: Objective, progress: float
) -> dict[str, float]:
    """One optimizer step over this rank's `rows`; returns the step's metrics, averaged over all ranks.

    Raises:
        FloatingPointError: after MAX_SKIPPED_STEPS steps in a row with a non-finite gradient.
    """
    started = time.perf_counter()
    backend = trainer.backend
    # --- count: one denominator, over all ranks, before the first backward
    denominator = max(backend.sum(sum(row.count for row in rows)), 1e-8)
    plans = plan(trainer.model, trainer.family, rows, trainer.max_tokens, trainer.sharing)
    rows, plans = together(trainer, rows, plans)
    # --- forward and backward
    trainer.model.train()
    if trainer.check:
        check_shared(trainer, rows, plans, objective)
    sums: dict[str, float] = {}
    for number, planned in enumerate(plans, start=1):
        micro = _built(trainer, rows, planned)
        with micro.attention(trainer.model), offloaded(trainer.model) if trainer.offload else nullcontext():
            loss_sum, parts = micro_loss(trainer, micro, objective)
            backend.backward(loss_sum / denominator, last=number == len(plans))
        for name, value in parts.items():
            sums[name] = max(sums.get(name, 0.0), value) if _is_largest(name) else sums.get(name, 0.0) + value
    updated = update(trainer, progress)
    # --- metrics
    total = {
        name: max(backend.gather(value)) if _is_largest(name) else backend.sum(value)
        for name, value in sorted(sums.items())
    }
    total |= trainer.sharing.take_plain(backend)
    balance = _balance(backend, sums["forward_tokens"])
    return _metrics(total, denominator) | balance | updated | {"time/step": time.perf_counter() - started}


def update(trainer: Trainer, progress: float) -> dict[str, float]:
    """Clip the gradients that have been accumulated, update, forget them; a gradient that is not finite is skipped.

    Raises:
        FloatingPointError: after MAX_SKIPPED_STEPS steps in a row with a non-finite gradient.
    """
    factor = trainer.schedule(progress)
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    grad_norm = trainer.backend.update(trainer.optimizer, trainer.max_grad_norm)
    finite = math.isfinite(grad_norm)
    trainer.skipped_in_a_row = 0 if finite else trainer.skipped_in_a_row + 1
    if trainer.skipped_in_a_row >= MAX_SKIPPED_STEPS:
        raise FloatingPointError(
            f"the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row; lower learning_rate or look at the "
            "rows of these steps; the last checkpoint is from before"
        )
    return {
        "grad_norm": grad_norm,
        "learning_rate": max(group["lr"] for group in trainer.optimizer.param_groups),
        "skipped_steps": 0.0 if finite else 1.0,
    }


def micro_loss(trainer: Trainer, micro: Micro, objective: Objective) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum of the weighted token losses of one micro-batch, and the sums its metrics are made of."""
    batch = micro.batch
    scored = scores(trainer.wrapped, trainer, micro, objective)
    logprobs, entropy, first = scored.logprobs, scored.entropy, scored.first
    device = logprobs.device

    def part(stream: torch.Tensor) -> torch.Tensor:
        return stream[:, first:].to(device)

    aggregation, rl, kl, ce = part(batch.aggregation), part(batch.rl), part(batch.kl), part(batch.ce)
    if batch.beside is not None:
        aggregation = aggregation * ~batch.beside.to(device).unsqueeze(-1)
    active = aggregation > 0
    old = logprobs.detach() if batch.old_logprobs is None else part(batch.old_logprobs)
    term, clip = policy_term(logprobs, old, rl, objective.epsilon, objective.epsilon_high)
    corrected: dict[str, float] = {}
    if objective.correction is not None:  # asked for by the method, so that all ranks tell the same sums
        known = None if batch.sampling_logprobs is None else part(batch.sampling_logprobs)
        sampled = active & (ce == 0) & torch.tensor(known is not None, device=device)
        weights, corrected = correct(old, old if known is None else known, sampled, objective.correction)
        term = term if weights is None else term * weights
    weight_sum = 0.0
    if scored.weights is not None:
        term = term * scored.weights
        weight_sum = float((scored.weights * active).sum())
    per_token = term - ce * logprobs
    kl_sum = 0.0
    if batch.ref_logprobs is not None:
        divergence = k3(logprobs, part(batch.ref_logprobs))
        per_token = per_token + kl * divergence
        kl_sum = float((divergence.detach() * active).sum())
    loss = torch.where(active, aggregation * per_token, 0.0).sum()
    parts = {
        "loss": float(loss.detach()),
        "tokens": float(active.sum()),
        "nll": float((-logprobs.detach() * active * (ce > 0)).sum()),
        "ce_tokens": float((active & (ce > 0)).sum()),
        "entropy": float((entropy.detach() * active).sum()),
        "kl": kl_sum,
        "kl_tokens": float((active & (kl > 0)).sum()),
        "token_weight": weight_sum,
        "input_tokens": float(batch.attention_mask.sum()),
        "forward_tokens": float(micro.forward_tokens),
        "shared_rows": 0.0 if micro.packed is None else float(batch.ids.shape[0]),
        "rows": float(batch.ids.shape[0]),
    }
    parts |= {name: float((value * active).sum()) for name, value in clip.items()}
    return loss, parts | corrected


def _is_largest(name: str) -> bool:
    """Whether a metric's parts join by their maximum instead of their sum."""
    return name.endswith("/max")


def _built(trainer: Trainer, rows: Sequence[TrainingSample], planned: Plan) -> Micro:
    device = trainer.backend.device
    return build(trainer.model, trainer.family, rows, planned, trainer.pad_id, device)


@torch.no_grad()
def _scored(
    model: Any, trainer: Trainer, rows: Sequence[TrainingSample], objective: Objective
) -> Iterator[tuple[Plan, Scores]]:
    """Scores of all rows under `model` as it is now, out of training, micro-batch by micro-batch.

    Where weights lie apart, all ranks compute as many, some of them on rows behind `rows` that nobody asked for.
    """
    backend = trainer.backend
    with out_of_training(model):
        plans = plan(trainer.model, trainer.family, rows, trainer.max_tokens, trainer.sharing)
        if model is trainer.model and backend.apart() and backend.max(len(plans)):
            rows, plans = together(trainer, rows, plans)
        for planned in plans:
            micro = _built(trainer, rows, planned)
            with micro.attention(model):
                scored = scores(model, trainer, micro, objective)
            yield planned, scored
    trainer.sharing.plain.clear()  # the step will say so


@torch.no_grad()
def fixed_logprobs(
    model: Any,
    trainer: Trainer,
    rows: Sequence[TrainingSample],
    objective: Objective,
) -> list[torch.Tensor]:
    """Log-probabilities under `model` as it is now, float32 [T] a row (0 where nothing is learned).

    `model` is the trainer's own (the old policy) or a frozen reference of the same family.
    """
    out: list[torch.Tensor] = [torch.zeros(0)] * len(rows)
    for planned, scored in _scored(model, trainer, rows, replace(objective, token_weights=None)):
        for i, line in _asked(planned, scored.logprobs, len(rows)):
            out[i] = _whole_row(rows[i], line, scored.first) * (rows[i].aggregation > 0)
    return out


@torch.no_grad()
def shown_weights(
    trainer: Trainer, rows: Sequence[TrainingSample], objective: Objective
) -> list[torch.Tensor]:
    """The method's token weights as the step would take them now, float32 [T] a row (0 where nothing is learned).

    `rows` are whole groups.
    """
    assert objective.token_weights is not None
    out: list[torch.Tensor] = [torch.zeros(0)] * len(rows)
    for planned, scored in _scored(trainer.model, trainer, rows, objective):
        assert scored.weights is not None
        for i, line in _asked(planned, scored.weights, len(rows)):
            out[i] = _whole_row(rows[i], line, scored.first) * (rows[i].aggregation > 0)
    return out


def _asked(planned: Plan, lines: torch.Tensor, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The lines of a micro-batch by the rows' numbers, without those behind the first `rows`."""
    return ((i, line) for i, line in zip(planned.rows, lines, strict=True) if i < rows)


def _whole_row(row: TrainingSample, line: torch.Tensor, first: int) -> torch.Tensor:
    """Numbers of a row's columns from `first` on -> float32 [T], zero before."""
    whole = torch.zeros(len(row))
    whole[first:] = line[: len(row) - first].float().cpu()
    return whole


def _balance(backend: Backend, tokens: float) -> dict[str, float]:
    """How even the ranks' parts of a step are, by the tokens that the LLM computes: 1 where all have as many."""
    if backend.world_size == 1:
        return {}
    everyone = backend.gather(tokens)
    return {"tokens/balance": sum(everyone) / len(everyone) / max(everyone)}


def _metrics(total: dict[str, float], denominator: float) -> dict[str, float]:
    tokens = max(total["tokens"], 1.0)
    out = {
        "loss": total["loss"] / denominator,
        "entropy": total["entropy"] / tokens,
        "tokens/learned": total["tokens"],
        "tokens/input": total["input_tokens"],
        "tokens/forward": total["forward_tokens"],  # what the LLM computed: padding too, shared prompts once
        "rows": total["rows"],
    }
    fallbacks = {name: value for name, value in total.items() if name.startswith("shared_prefix/")}
    if fallbacks or total["shared_rows"]:
        out |= {"shared_prefix/rows": total["shared_rows"]} | fallbacks
    if total["ce_tokens"]:
        out["nll"] = total["nll"] / total["ce_tokens"]
    else:
        if total["kl_tokens"]:
            out["kl"] = total["kl"] / total["kl_tokens"]
        out |= {name: value / tokens for name, value in total.items() if name.startswith("clip_ratio/")}
        out |= correction_metrics(total)
        if total["token_weight"]:
            out["token_weight/mean"] = total["token_weight"] / tokens
    return out
