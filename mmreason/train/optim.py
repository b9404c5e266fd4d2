"""The optimizer and its learning-rate schedule, as the recipe's stage names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mmreason.schema import StageConfig
from mmreason.train.muon import MuonAndAdamW


def make_optimizer(groups: list[dict[str, Any]], stage: StageConfig) -> torch.optim.Optimizer:
    """AdamW, Muon or SGD with momentum over named parameter groups; each keeps its own base rate as `initial_lr`."""
    optimizer: torch.optim.Optimizer
    betas = (stage.adam_beta1, stage.adam_beta2)
    if stage.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=stage.learning_rate, momentum=0.9)
    elif stage.optimizer == "muon":
        optimizer = MuonAndAdamW(groups, lr=stage.learning_rate, betas=betas, scale=stage.muon_lr_scale)
    else:
        optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=betas, fused=True)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def make_schedule(kind: str, warmup_ratio: float) -> Callable[[float], float]:
    """Learning-rate factor as a function of progress (0 at the first step, 1 at the last).

    A function of progress, not of the step number, so that a stage bounded by wall time has the same shape.
    """

    def factor(progress: float) -> float:
        progress = min(max(progress, 0.0), 1.0)
        if progress < warmup_ratio:
            return (progress + 1e-3) / (warmup_ratio + 1e-3)
        rest = (progress - warmup_ratio) / max(1.0 - warmup_ratio, 1e-8)
        if kind == "linear":
            return 1.0 - rest
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * rest))
        return 1.0

    return factor
