"""How much memory a stage will take, roughly: counted parameters, and published rules of thumb for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mmreason.model.load import Loaded
from mmreason.schema import GRPOStage, Recipe, StageConfig

ACTIVATION_VALUES = (
    17  # kept values a token, layer and hidden unit (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2)
)
LOGIT_COPIES = 3  # logits, their float32 log-softmax, and its gradient
FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of one process in one stage, an estimate.

    Example: 1,000 float32 parameters that all learn with AdamW: weights 4,000, gradients 4,000, optimizer 8,000.
    """

    PARTS: ClassVar[tuple[str, ...]] = (
        "weights",
        "gradients",
        "optimizer",
        "reference",
        "activations",
        "kv_cache",
    )
    weights: int
    gradients: int
    optimizer: int
    reference: int  # the frozen copy that beta > 0 asks for
    activations: int  # of the largest micro-batch
    kv_cache: int  # of one rollout batch; not there while the step runs

    def parts(self) -> list[int]:
        """The values in the order of `PARTS`."""
        return [getattr(self, name) for name in self.PARTS]

    @property
    def total(self) -> int:
        """The larger of the two moments of a step: training, and generating."""
        held = self.weights + self.optimizer + self.reference
        return held + max(self.gradients + self.activations, self.kv_cache)

    def as_dict(self) -> dict[str, int]:
        """Bytes by part, and `total`."""
        return dict(zip(self.PARTS, self.parts(), strict=True)) | {"total": self.total}


def estimate(loaded: Loaded, recipe: Recipe, stage: StageConfig, prompt: int, written: int) -> Memory:
    """The estimate for one stage of the recipe on the loaded model, whose frozen parts are frozen already.

    `prompt` and `written` are the tokens of the longest prompt and of the longest target or completion.
    """
    parameters = list(loaded.model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    learning = [p for p in parameters if p.requires_grad]
    moments = 2 if stage.optimizer == "adamw" else 0
    grpo = stage if isinstance(stage, GRPOStage) else None
    config: Any = loaded.model.config.get_text_config()
    return Memory(
        weights=weights,
        gradients=sum(p.numel() * p.element_size() for p in learning),
        optimizer=moments * sum(p.numel() * p.element_size() for p in learning),
        reference=weights if grpo is not None and grpo.beta > 0 else 0,
        activations=_activations(config, recipe, stage, prompt + written),
        kv_cache=0 if grpo is None else _kv_cache(config, recipe, grpo, prompt + written),
    )


def _activations(config: Any, recipe: Recipe, stage: StageConfig, longest: int) -> int:
    """Of the largest micro-batch through the LLM, and its logits; the encoders' own are left out."""
    rows = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    tokens = max(longest, min(stage.max_tokens_per_micro_batch, rows * longest))
    kept = 1 if stage.gradient_checkpointing else ACTIVATION_VALUES
    layers = config.num_hidden_layers * config.hidden_size * kept * _width(recipe)
    return tokens * (layers + config.vocab_size * FLOAT32 * LOGIT_COPIES)


def _kv_cache(config: Any, recipe: Recipe, stage: GRPOStage, longest: int) -> int:
    """Keys and values of all rows of a rollout, each as long as it may become."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    rows = min(rows, recipe.rollout.max_rows)
    needed = rows * longest * config.num_hidden_layers * 2 * heads * head * _width(recipe)
    allowed = recipe.rollout.kv_cache_memory_bytes
    return needed if allowed is None else min(needed, allowed)


def _width(recipe: Recipe) -> int:
    """Bytes of one activation value."""
    return 2 if recipe.bf16 or recipe.model.torch_dtype != "float32" else FLOAT32
