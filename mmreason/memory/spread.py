"""What several processes keep of weights, gradients and the optimizer's states, by backend and ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmreason.schema import Recipe, StageConfig
from mmreason.train.deepspeed_config import DeepSpeedConfig, deepspeed_problems, read

FLOAT32 = 4
BUCKET = 500_000_000  # DeepSpeed's own reduce_bucket_size, in elements
LIVE = 1_000_000_000  # and its stage3_max_live_parameters


@dataclass(frozen=True)
class Spread:
    """Bytes of one process.

    Example: 1,000 float32 parameters under ZeRO-2 in two processes: weights 4,000, gradients 2,000, and of the
    optimizer half of its two moments and of a float32 copy, 6,000.
    """

    spread: bool  # gradients lie elsewhere than beside their parameters, or twice
    weights: int  # while the step runs
    whole: int  # in a rollout: under ZeRO-3 gathered, beside this process's part
    gradients: int
    optimizer: int
    buffers: int
    offloaded: int = 0  # in the CPU's memory

    def lighter(self, size: int) -> Spread:
        """The same with weights that take so many bytes less."""
        return replace(self, weights=self.weights - size, whole=self.whole - size)


def spread_of(
    recipe: Recipe,
    stage: StageConfig,
    everything: Sequence[torch.Tensor],
    learning: Sequence[torch.Tensor],
    world: int,
) -> Spread:
    """The parts of one of `world` processes that train `learning` tensors of `everything`."""
    weights = sum(t.numel() * t.element_size() for t in everything)
    gradients = sum(t.numel() * t.element_size() for t in learning)
    moments = 1 if stage.optimizer == "sgd" else 2  # muon keeps one of a matrix: less than is said here
    config = read(recipe) if recipe.deepspeed is not None and not deepspeed_problems(recipe) else None
    if config is None:
        buffers = gradients if world > 1 else 0  # DDP's buckets hold all gradients once more
        return Spread(world > 1, weights, weights, gradients, moments * gradients, buffers)
    count = sum(t.numel() for t in learning)
    if config.stage == 0:
        return Spread(True, weights, weights, gradients, moments * gradients, _bucket(config, gradients))
    return _partitioned(config, weights, gradients, count, moments, world)


def _partitioned(
    config: DeepSpeedConfig, weights: int, gradients: int, count: int, moments: int, world: int
) -> Spread:
    zero = config.settings["zero_optimization"]
    width = gradients // max(count, 1)
    three = config.stage == 3
    # ZeRO-3 updates float32 weights where they lie; the others keep float32 ones of their part beside them
    copies = 0 if three and not config.bf16 else 1
    optimizer = FLOAT32 * (moments + copies) * count // world
    grads = gradients if config.stage == 1 else gradients // world
    bucket = int(float(zero.get("reduce_bucket_size", BUCKET))) * width if config.stage > 1 else 0
    held, whole = weights, weights
    if three:
        held = weights // world + min(weights, LIVE * width)
        whole = weights // world + weights
    offloaded = optimizer if (zero.get("offload_optimizer") or {}).get("device") == "cpu" else 0
    if (zero.get("offload_param") or {}).get("device") == "cpu":
        offloaded += weights // world
        held, whole = held - weights // world, whole - weights // world
    kept = 0 if (zero.get("offload_optimizer") or {}).get("device") == "cpu" else optimizer
    return Spread(True, held, whole, grads, kept, bucket, offloaded)


def _bucket(config: DeepSpeedConfig, gradients: int) -> int:
    """ZeRO-0 sends gradients joined, so many at a time."""
    size = config.settings["zero_optimization"].get("allgather_bucket_size", BUCKET)
    return min(gradients, int(float(size)) * FLOAT32)
