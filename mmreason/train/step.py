"""The training step: count -> forward/backward -> clip -> update -> metrics. Blind to the algorithm.

Rows arrive with their per-token streams; the step multiplies and sums. SFT and GRPO both end here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmreason.data.loader import collate, pack
from mmreason.model.family import Family, forward_inputs
from mmreason.objective import k3, policy_term, token_logprobs
from mmreason.train.distributed import Backend
from mmreason.types import MicroBatch, Rendered, TrainingSample

# (logits of one group [G, C, V], mask [G, C]) -> weights [G, C]
TokenWeights = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """What a method declares to the step: how log-probabilities are taken and what it needs from the group.

    Example: `Objective(banned=(7, 8), temperature=1.0, epsilon=0.2, epsilon_high=0.28)`.
    """

    banned: tuple[int, ...] = ()  # ids removed from the distribution, as in sampling
    temperature: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    token_weights: TokenWeights | None = None


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
    wrapped: nn.Module = field(init=False)
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.wrapped = self.backend.wrap(self.model)


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
    micros = [[rows[i] for i in chosen] for chosen in pack(rows, trainer.max_tokens)]
    rounds = backend.max(len(micros))
    if not rounds:
        raise ValueError("a step needs at least one row on some rank; got none")
    micros += [[blank(trainer.pad_id)]] * (rounds - len(micros))
    # --- forward and backward
    trainer.model.train()
    sums: dict[str, float] = {}
    for micro_rows in micros:
        loss_sum, parts = micro_loss(trainer, collate(micro_rows, trainer.pad_id), objective)
        backend.backward(loss_sum / denominator)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
    updated = update(trainer, progress)
    # --- metrics
    total = {name: backend.sum(value) for name, value in sorted(sums.items())}
    return _metrics(total, denominator) | updated | {"time/step": time.perf_counter() - started}


def update(trainer: Trainer, progress: float) -> dict[str, float]:
    """Clip the gradients that have been accumulated, update, forget them; a gradient that is not finite is skipped.

    Raises:
        FloatingPointError: after MAX_SKIPPED_STEPS steps in a row with a non-finite gradient.
    """
    factor = trainer.schedule(progress)
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    trainable = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    grad_norm = float(nn.utils.clip_grad_norm_(trainable, trainer.max_grad_norm))
    finite = math.isfinite(grad_norm)
    if finite:  # a NaN that reached the optimizer would ruin its moments for good
        trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
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


def micro_loss(
    trainer: Trainer, batch: MicroBatch, objective: Objective
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum of the weighted token losses of one micro-batch, and the sums its metrics are made of."""
    logprobs, entropy, logits, first = completion_logprobs(trainer.wrapped, trainer, batch, objective)
    device = logprobs.device

    def part(stream: torch.Tensor) -> torch.Tensor:
        return stream[:, first:].to(device)

    aggregation, rl, kl, ce = part(batch.aggregation), part(batch.rl), part(batch.kl), part(batch.ce)
    active = aggregation > 0
    old = logprobs.detach() if batch.old_logprobs is None else part(batch.old_logprobs)
    term, clip = policy_term(logprobs, old, rl, objective.epsilon, objective.epsilon_high)
    weight_sum = 0.0
    if objective.token_weights is not None:
        weights = _group_weights(logits, active, batch, objective)
        term = term * weights
        weight_sum = float((weights * active).sum())
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
        "rows": float(batch.ids.shape[0]),
    }
    parts |= {name: float((value * active).sum()) for name, value in clip.items()}
    return loss, parts


def completion_logprobs(
    model: Any, trainer: Trainer, batch: MicroBatch, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Log-probability and entropy of each token from the batch's first learned column on.

    Returns (logprobs [B, K], entropy [B, K], logits [B, K, V], first) where column j speaks of `ids[:, first + j]`.
    Columns before `first` hold prompts only, so no [prompt, vocab] tensor is made for them.
    """
    learned = (batch.aggregation > 0).any(dim=0)
    first = max(int(learned.float().argmax()), 1) if bool(learned.any()) else 1
    keep = batch.ids.shape[1] - first + 1
    device = trainer.backend.device
    inputs = forward_inputs(trainer.family, batch, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=trainer.bf16):
        logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, -keep:-1]
    targets = batch.ids[:, first:].to(device)
    logprobs, entropy = token_logprobs(logits, targets, objective.banned, objective.temperature)
    return logprobs, entropy, logits, first


def _group_weights(
    logits: torch.Tensor, active: torch.Tensor, batch: MicroBatch, objective: Objective
) -> torch.Tensor:
    """Method-made weights [B, K], group by group. Rows of a group share their prompt, so columns align."""
    assert objective.token_weights is not None
    weights = torch.ones(active.shape, device=logits.device)
    with torch.no_grad():
        for group in batch.groups.unique().tolist():
            rows = (batch.groups == group).nonzero().flatten().to(logits.device)
            columns = active[rows].any(dim=0).nonzero().flatten()
            if group < 0 or not len(columns):
                continue
            low, high = int(columns[0]), int(columns[-1]) + 1
            # The weights' formula takes the full-vocabulary log-softmax at temperature 1, without the ban.
            weights[rows, low:high] = objective.token_weights(logits[rows, low:high], active[rows, low:high])
    return weights


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
    training = model.training
    model.eval()
    out: list[torch.Tensor] = [torch.zeros(0)] * len(rows)
    for chosen in pack(rows, trainer.max_tokens):
        batch = collate([rows[i] for i in chosen], trainer.pad_id)
        logprobs, _, _, first = completion_logprobs(model, trainer, batch, objective)
        for j, i in enumerate(chosen):
            length = len(rows[i])
            line = torch.zeros(length)
            line[first:] = logprobs[j, : length - first].float().cpu()
            out[i] = line * (rows[i].aggregation > 0)
    model.train(training)
    return out


@torch.no_grad()
def shown_weights(
    trainer: Trainer, rows: Sequence[TrainingSample], objective: Objective
) -> list[torch.Tensor]:
    """The method's token weights as the step would take them now, float32 [T] a row (0 where nothing is learned).

    `rows` are whole groups.
    """
    training = trainer.model.training
    trainer.model.eval()
    out: list[torch.Tensor] = [torch.zeros(0)] * len(rows)
    for chosen in pack(rows, trainer.max_tokens):
        batch = collate([rows[i] for i in chosen], trainer.pad_id)
        _, _, logits, first = completion_logprobs(trainer.model, trainer, batch, objective)
        active = batch.aggregation[:, first:].to(logits.device) > 0
        weights = (_group_weights(logits, active, batch, objective) * active).float().cpu()
        for j, i in enumerate(chosen):
            out[i] = torch.cat([torch.zeros(first), weights[j, : len(rows[i]) - first]])
    trainer.model.train(training)
    return out


def blank(pad_id: int) -> TrainingSample:
    """A row with nothing to learn: what a rank with fewer micro-batches, or none, runs to keep step with the others."""
    ids = torch.full((2,), pad_id)
    rendered = Rendered(
        "blank",
        ids,
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros_like(ids),
    )
    nothing = torch.zeros(2)
    return TrainingSample(rendered, aggregation=nothing, count=0.0, ce=nothing, rl=nothing, kl=nothing)


def _metrics(total: dict[str, float], denominator: float) -> dict[str, float]:
    tokens = max(total["tokens"], 1.0)
    out = {
        "loss": total["loss"] / denominator,
        "entropy": total["entropy"] / tokens,
        "tokens/learned": total["tokens"],
        "tokens/input": total["input_tokens"],
        "rows": total["rows"],
    }
    if total["ce_tokens"]:
        out["nll"] = total["nll"] / total["ce_tokens"]
    else:
        if total["kl_tokens"]:
            out["kl"] = total["kl"] / total["kl_tokens"]
        out |= {name: value / tokens for name, value in total.items() if name.startswith("clip_ratio/")}
        if total["token_weight"]:
            out["token_weight/mean"] = total["token_weight"] / tokens
    return out
