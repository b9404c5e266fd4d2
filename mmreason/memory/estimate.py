"""How much memory a stage will take in one process: its moments rehearsed, its states counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mmreason.memory.rehearsal import (
    Stand,
    feature_bytes,
    rollout_peak,
    stand_in,
    training_peak,
    training_rows,
)
from mmreason.memory.spread import spread_of
from mmreason.model.load import Loaded
from mmreason.model.parts import freeze
from mmreason.model.quantize import BYTES, quantized_layers
from mmreason.model.shared_fit import unpackable
from mmreason.render.recent import KEPT_BYTES
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_inside import KV_BYTES
from mmreason.schema import GRPOStage, PretaskStage, Recipe, StageConfig
from mmreason.train.deepspeed_config import by_modules, gathers
from mmreason.train.feed import CACHE_BYTES, size
from mmreason.types import Rendered

SIGMAS = 2.5  # how far above the mean a batch's tokens come in some hundreds of batches


@dataclass(frozen=True)
class Rows:
    """A stage's rows, as far as they were rendered: the longest, and how long all are.

    Example: rows of 10, 10 and 40 tokens: `Rows(longest, (10, 10, 40))`. `longest` is a prompt for GRPO.
    """

    longest: Rendered
    lengths: tuple[int, ...]

    def alike(self, count: int) -> int:
        """So many rows of the longest one's length are as long as the largest batch of `count` rows."""
        lengths = torch.tensor(self.lengths, dtype=torch.float64)
        spread = float(lengths.std(correction=0)) * count**0.5
        tokens = count * float(lengths.mean()) + SIGMAS * spread
        return max(1, min(count, round(tokens / max(self.lengths))))


@dataclass(frozen=True)
class Memory:
    """Bytes of one process in one stage.

    Example: 1,000 float32 parameters that all learn with AdamW: weights 4,000, gradients 4,000, optimizer 8,000.
    """

    PARTS: ClassVar[tuple[str, ...]] = (
        "weights",
        "gradients",
        "optimizer",
        "reference",
        "activations",
        "kv_cache",
        "features",
        "buffers",
        "rows",
    )
    weights: int  # while the step runs
    gradients: int
    optimizer: int  # moments, and float32 weights beside those in bfloat16 or of a shard
    reference: int  # the frozen copy that beta > 0 asks for
    activations: (
        int  # of the largest micro-batch, its temporary tensors among them; in one process gradients too
    )
    kv_cache: int  # of one rollout batch; not there while the step runs
    features: int  # of media whose encoders learn nothing, kept over steps
    buffers: int  # in which DDP and DeepSpeed send gradients
    rows: int  # rendered rows and their media, kept in the CPU's memory
    moments: Mapping[str, int]  # what is there at once in each of the stage's moments
    offloaded: int = 0  # in the CPU's memory, beside all these

    def parts(self) -> list[int]:
        """The values in the order of `PARTS`."""
        return [getattr(self, name) for name in self.PARTS]

    @property
    def total(self) -> int:
        """The largest moment."""
        return max(self.moments.values())

    def as_dict(self) -> dict[str, object]:
        """Bytes by part and by moment, and `total`."""
        parts: dict[str, object] = dict(zip(self.PARTS, self.parts(), strict=True))
        return parts | {"offloaded": self.offloaded, "moments": dict(self.moments), "total": self.total}


def estimate(
    loaded: Loaded,
    recipe: Recipe,
    stage: StageConfig,
    rows: Rows,
    *,
    pad_id: int,
    banned: Sequence[int],
    seen: int = 0,
    evaluated: Rendered | None = None,
    world: int = 1,
    on_cpu: bool = True,
    rehearsed: Peaks | None = None,
) -> Memory:
    """The estimate for one stage of the recipe on the loaded model, by the recipe's own freezing and adapters.

    Args:
        pad_id: of the tokenizer; `banned` the ids that are never sampled.
        seen: rows that the stage draws at most; rendered ones are kept, and what frozen encoders made of their media.
        evaluated: the longest prompt that is evaluated after the stage; None: nothing is.
        world: processes that train together.
        on_cpu: weights that a stage starts from are read into the same memory.
        rehearsed: the moments, where they are known already; they do not depend on how many processes share the rest.
    """
    stand = stand_in(loaded, recipe.model, pad_id, banned)
    freeze(stand.model, stand.family, recipe.model, stage.freeze)
    spared = quantized_bytes(stand) if recipe.model.load_in_4bit else 0
    weights = _bytes(stand.weights()) - spared
    grpo = stage if isinstance(stage, GRPOStage) else None
    reference = weights if grpo is not None and grpo.beta > 0 else 0
    share = spread_of(recipe, stage, stand.weights(), stand.learning(), world).lighter(spared)
    features = _features(stand, recipe, rows, seen)
    kept = _kept(rows.longest, seen)
    peaks = rehearsed or rehearse(stand, recipe, stage, rows, spread=share.spread)
    inside = _vllm_inside(recipe, weights) if grpo is not None else 0
    held = share.optimizer + reference + features + inside
    sent = share.gradients + share.buffers if share.spread else 0
    moments = {"training": share.weights + held + sent + peaks.training}
    if peaks.check:
        moments["check"] = share.weights + reference + features + inside + peaks.check
    if grpo is not None:
        moments["rollout"] = (share.weights if by_modules(recipe) else share.whole) + held + peaks.rollout
    if on_cpu:
        moments["start"] = weights * (3 if reference else 2)
    if evaluated is not None:
        moments["evaluation"] = _evaluation(stand, recipe, evaluated) - spared + features + inside
    return Memory(
        weights=share.weights,
        gradients=share.gradients,
        optimizer=share.optimizer,
        reference=reference,
        activations=peaks.training,
        kv_cache=peaks.kv_cache,
        features=features,
        buffers=share.buffers,
        rows=kept,
        moments={name: n + (kept if on_cpu else 0) for name, n in moments.items() if n},
        offloaded=share.offloaded + peaks.offloaded,
    )


def _evaluation(stand: Stand, recipe: Recipe, evaluated: Rendered) -> int:
    """Bytes at the peak of a batch of evaluated prompts, all as long as the longest."""
    params = SamplingParams(recipe.eval.max_completion_length, greedy=True)
    rolled, _ = rollout_peak(stand, recipe, evaluated, recipe.eval.batch_size, 1, params)
    return rolled


@dataclass(frozen=True)
class Peaks:
    """Bytes above the weights: of a step, of the first one's check, of a rollout; and its keys and values.

    Example: a stage without rollouts whose step is not checked: `Peaks(10**9, 0, 0, 0)`. `offloaded` are activations
    that the step has in the CPU's memory.
    """

    training: int
    check: int
    rollout: int
    kv_cache: int
    offloaded: int = 0


def rehearse(stand: Stand, recipe: Recipe, stage: StageConfig, rows: Rows, *, spread: bool) -> Peaks:
    """Go through a stage's moments. `spread`: gradients lie elsewhere than beside their parameters (several processes,
    or DeepSpeed), and are not counted; what learns is set on the model already.
    """
    batch = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    weights = _bytes(stand.weights())
    if isinstance(stage, PretaskStage):
        return Peaks(_bytes(stand.learning()), 0, 0, 0)
    grpo = stage if isinstance(stage, GRPOStage) else None
    prompts, own = batch, 1
    if grpo is not None:  # a process may have a part of a group
        prompts, own = -(-batch // grpo.num_generations), min(grpo.num_generations, batch)
    if unpackable(stand.model, recipe.shared_prefix, gathers(recipe)) is None:
        prompts = rows.alike(prompts)  # else all are padded to the longest
    step = training_rows(stand, stage, rows.longest, prompts, own)
    training, check, away = training_peak(stand, recipe, stage, step, gathers=gathers(recipe), spread=spread)
    rolled = kept = 0
    if grpo is not None and recipe.rollout.engine != "local":
        rolled = weights * (
            2 if recipe.model.use_peft else 1
        )  # adapters are merged into a copy, which is sent
    elif grpo is not None:
        params = SamplingParams(
            grpo.max_completion_length,
            grpo.temperature,
            grpo.top_p,
            grpo.top_k,
            grpo.min_p,
            max_rows=recipe.rollout.max_rows,
            kv_bytes=recipe.rollout.kv_cache_memory_bytes,
        )
        asked = (rows.longest, prompts, own, params)
        rolled, kept = rollout_peak(stand, recipe, *asked, apart=by_modules(recipe))
    return Peaks(training, check, max(rolled - weights, 0), kept, away)


def quantized_bytes(stand: Stand) -> int:
    """What layers in 4 bits spare, less the widest of them, which is whole while it is used."""
    sizes = [(m.weight.numel(), m.weight.element_size()) for m in quantized_layers(stand.model, stand.family)]
    return round(sum(n * (width - BYTES) for n, width in sizes)) - max(n * width for n, width in sizes)


def _vllm_inside(recipe: Recipe, weights: int) -> int:
    """What vLLM holds in the run's own process all the time: a copy of the weights, and its keys and values."""
    rollout = recipe.rollout
    if rollout.engine == "local" or rollout.mode == "server":
        return 0
    return weights + (rollout.kv_cache_memory_bytes or KV_BYTES)


def _features(stand: Stand, recipe: Recipe, rows: Rows, seen: int) -> int:
    """Of encoders that learn nothing, within what the recipe allows."""
    names = [n for n, p in stand.model.named_parameters() if p.requires_grad]
    learns = {stand.family.part_of(name) for name in names} & {"vision", "audio"}
    if learns or recipe.shared_prefix == "off" or not rows.longest.media:
        return 0
    return min(recipe.feature_cache_bytes, seen * feature_bytes(stand, rows.longest))


def _kept(row: Rendered, seen: int) -> int:
    """Rendered rows, and once more the media of those that were rendered last."""
    media = _bytes(list(row.media.values()))
    return min(seen * size(row), CACHE_BYTES) + min(seen * media, KEPT_BYTES)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
