"""What a recipe's `deepspeed` key means: DeepSpeed's own settings, and what of them cannot work here, by name."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.schema import DEEPSPEED_PRESETS, PretaskStage, Recipe

# What the recipe and its stages say already; "auto", as Hugging Face's files have it, leaves it to them.
OURS = {
    "optimizer": "stages.NAME.optimizer and its keys",
    "scheduler": "stages.NAME.lr_scheduler_type",
    "gradient_clipping": "stages.NAME.max_grad_norm",
    "train_batch_size": "stages.NAME.per_device_train_batch_size and gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "stages.NAME.max_tokens_per_micro_batch",
    "gradient_accumulation_steps": "stages.NAME.gradient_accumulation_steps",
    "bf16": "model.torch_dtype: bfloat16",
    "torch_autocast": "bf16: true",
    "fp16": "nothing: float16 is not supported",
    "amp": "nothing: float16 is not supported",
}


@dataclass(frozen=True)
class DeepSpeedConfig:
    """Settings for `deepspeed.initialize`, without those that a stage brings.

    Example: `read(recipe)` of a recipe with `deepspeed: zero2` has `stage` 2.
    """

    settings: dict[str, Any]
    bf16: bool  # weights in bfloat16, with float32 ones beside them in the optimizer
    autocast: bool  # weights in float32, forward and backward in bfloat16

    @property
    def stage(self) -> int:
        """0 to 3: what is spread over ranks (nothing; optimizer states; gradients too; weights too)."""
        return int(self.settings["zero_optimization"].get("stage", 0))

    def for_stage(self, max_grad_norm: float, *, cuda: bool) -> dict[str, Any]:
        """The whole configuration. Batches, accumulation and averaging are the step's affair: it divides by itself."""
        zero = dict(self.settings["zero_optimization"])
        if not cuda:
            zero["overlap_comm"] = False
        return {
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # that one is compiled when it is first used
            "steps_per_print": 10**9,
            **self.settings,
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm
            if self.stage
            else 0.0,  # the backend clips where nothing is spread
            "bf16": {"enabled": self.bf16},
            "torch_autocast": {
                "enabled": self.autocast,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradients travel in float32
            },
        }


def read(recipe: Recipe) -> DeepSpeedConfig | None:
    """The recipe's configuration, None without a `deepspeed` key.

    Raises:
        ValueError: what the key asks for cannot work; names every reason.
    """
    problems = deepspeed_problems(recipe)
    if problems:
        raise ValueError("; ".join(problems))
    return None if recipe.deepspeed is None else _config(recipe)


def gathers(recipe: Recipe) -> bool:
    """Whether a recipe trains under ZeRO-3, where a weight is whole only while its module runs."""
    return recipe.deepspeed is not None and not deepspeed_problems(recipe) and _config(recipe).stage == 3


def deepspeed_problems(recipe: Recipe) -> list[str]:
    """Why a recipe's `deepspeed` key cannot work; nothing of DeepSpeed is imported."""
    if recipe.deepspeed is None:
        return _gather_problems(recipe, 0)
    if importlib.util.find_spec("deepspeed") is None:
        return ["deepspeed: the package is not installed; pip install 'deepspeed>=0.19', or remove the key"]
    problem = _file_problem(recipe.deepspeed)
    if problem is not None:
        return [f"deepspeed: {recipe.deepspeed}: {problem}"]
    config = _config(recipe)
    problems = _gather_problems(recipe, config.stage)
    if recipe.backend != "auto":
        problems.append(
            f"backend: {recipe.backend} and a deepspeed key exclude each other; leave one of them out"
        )
    for stage in recipe.stages:
        if isinstance(stage, PretaskStage):
            problems.append(
                f"stages.{stage.name}: pretask does not run under DeepSpeed; make the base model without the deepspeed "
                "key and train on from its folder"
            )
        if stage.optimizer == "muon":
            problems.append(
                f"stages.{stage.name}.optimizer: muon needs whole matrices, and DeepSpeed steps flat pieces; take "
                "adamw, or leave the deepspeed key out"
            )
    if config.stage == 3 and recipe.shared_prefix == "require":
        problems.append(
            "shared_prefix: require cannot be met under ZeRO-3, where training computes rows one by one (the head's "
            "weights are there only while it runs); take zero2, or shared_prefix: auto"
        )
    if config.stage == 3:
        problems += [
            f"stages.{stage.name}.activation_offload: under ZeRO-3 gathered weights would be moved with activations; "
            "take gradient_checkpointing, or zero2"
            for stage in recipe.stages
            if stage.activation_offload
        ]
    if recipe.model.load_in_4bit:
        problems.append(
            "model.load_in_4bit has not been tried under DeepSpeed; remove it, or the deepspeed key (several processes "
            "then train with DDP)"
        )
    if recipe.model.torch_dtype == "float16":
        problems.append(
            "model.torch_dtype: float16 is not supported under DeepSpeed; take bfloat16 or float32"
        )
    if recipe.model.torch_dtype == "bfloat16" and config.stage == 0:
        problems.append(
            "deepspeed: zero0 keeps no float32 weights beside those in bfloat16; take zero1, or model.torch_dtype: "
            "float32 with bf16: true"
        )
    return problems


def by_modules(recipe: Recipe) -> bool:
    """Whether a recipe says that rollouts gather each module's weights as it runs."""
    return recipe.rollout.gather == "modules" and gathers(recipe)


def _gather_problems(recipe: Recipe, stage: int) -> list[str]:
    """Why `rollout.gather` would do nothing."""
    rollout = recipe.rollout
    if rollout.gather == "auto" or (stage == 3 and rollout.engine == "local"):
        return []
    return [
        f"rollout.gather: {rollout.gather} is of deepspeed: zero3 with rollout.engine: local; got deepspeed: "
        f"{recipe.deepspeed}, rollout.engine: {rollout.engine}; remove the key"
    ]


def _config(recipe: Recipe) -> DeepSpeedConfig:
    assert recipe.deepspeed is not None
    bf16 = recipe.model.torch_dtype == "bfloat16"
    return DeepSpeedConfig(_settings(recipe.deepspeed), bf16, recipe.bf16 and not bf16)


def _settings(name: str) -> dict[str, Any]:
    """DeepSpeed's settings under a preset's name, or of a file (without what is "auto" there)."""
    if name in DEEPSPEED_PRESETS:
        zero: dict[str, Any] = {"stage": int(name[4])}
        if name.endswith("_offload"):
            zero["offload_optimizer"] = {"device": "cpu"}
        if name == "zero3_offload":
            zero["offload_param"] = {"device": "cpu"}
        return {"zero_optimization": zero}
    settings = _without_auto(json.loads(Path(name).read_text(encoding="utf-8")))
    return {"zero_optimization": {}} | {key: value for key, value in settings.items() if key not in OURS}


def _without_auto(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value != "auto"
    }


def _file_problem(name: str) -> str | None:
    """What is wrong with a file of settings; None for a sound one and for the presets."""
    if name in DEEPSPEED_PRESETS:
        return None
    path = Path(name)
    if not path.is_file():
        return f"no such file; give one, or one of {', '.join(DEEPSPEED_PRESETS)}"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"it is no JSON ({error})"
    if not isinstance(tree, dict):
        return f"it holds a {type(tree).__name__}; give DeepSpeed's settings as one object"
    settings = _without_auto(tree)
    for key in sorted(settings.keys() & OURS.keys()):
        value = settings[key]
        if value in ({}, None, False) or (isinstance(value, dict) and value.get("enabled") is False):
            continue
        return f'{key} is said in the recipe, by {OURS[key]}; remove it there, or write "auto"'
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        return "zero_optimization must be an object whose stage is 0, 1, 2 or 3"
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device") == "nvme":
            return f"{part} to nvme has not been tried with mmreason; take cpu"
    return None
