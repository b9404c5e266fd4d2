"""What to change where a stage needs more memory than there is, and how much each change helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmreason.memory.estimate import Memory
from mmreason.schema import GRPOStage, PretaskStage, Recipe, StageConfig
from mmreason.train.deepspeed_config import deepspeed_problems, gathers

Predict = Callable[[Recipe, StageConfig], Memory]


@dataclass(frozen=True)
class Remedy:
    """One change of a recipe, and the bytes that its stage would then need at most.

    Example: `Remedy("stages.sft.gradient_checkpointing=true", 10**9, 5 * 10**9)`.
    """

    change: str
    saved: int
    total: int


def remedies(recipe: Recipe, stage: StageConfig, processes: int, predict: Predict) -> list[Remedy]:
    """Every change by itself that makes the stage smaller, the most helpful first.

    `predict` tells the memory of a stage of a recipe; `processes` train together.
    """
    now = predict(recipe, stage).total
    found = []
    for change, other, changed in _changes(recipe, stage, processes):
        total = predict(other, changed).total
        if total < now:
            found.append(Remedy(change, now - total, total))
    return sorted(found, key=lambda remedy: -remedy.saved)


def _changes(recipe: Recipe, stage: StageConfig, processes: int) -> Iterator[tuple[str, Recipe, StageConfig]]:
    """(how it is written, recipe, stage) of each change that the recipe does not have yet."""

    def of_stage(**keys: Any) -> tuple[str, Recipe, StageConfig]:
        text = " ".join(f"stages.{stage.name}.{key}={_yaml(value)}" for key, value in keys.items())
        return text, recipe, stage.model_copy(update=keys)

    def of_recipe(part: str, key: str, value: Any) -> tuple[str, Recipe, StageConfig]:
        changed = getattr(recipe, part).model_copy(update={key: value}) if part else value
        other = recipe.model_copy(update={part or key: changed})
        return f"{f'{part}.' if part else ''}{key}={_yaml(value)}", other, stage

    if isinstance(stage, PretaskStage):
        return
    if not stage.gradient_checkpointing and not stage.activation_offload:
        yield of_stage(gradient_checkpointing=True)
        if not gathers(recipe):
            yield of_stage(activation_offload=True)
    yield of_stage(max_tokens_per_micro_batch=max(1, stage.max_tokens_per_micro_batch // 2))
    if stage.optimizer == "adamw":
        yield of_stage(optimizer="sgd")
    if recipe.model.torch_dtype == "float32":
        yield of_recipe("model", "torch_dtype", "bfloat16")
    if not recipe.model.use_peft:
        yield of_recipe("model", "use_peft", True)
    elif not (recipe.model.load_in_4bit or recipe.model.assemble or recipe.deepspeed):
        yield of_recipe("model", "load_in_4bit", True)
    if not (recipe.model.freeze_vision_tower or recipe.model.freeze_llm or "llm" in stage.freeze):
        yield of_recipe("model", "freeze_vision_tower", True)
    if isinstance(stage, GRPOStage):
        if stage.beta > 0:
            yield of_stage(beta=0.0)
        yield of_stage(max_completion_length=max(1, stage.max_completion_length // 2))
        if stage.num_generations % 2 == 0 and stage.num_generations > 2:
            yield of_stage(num_generations=stage.num_generations // 2)
        if gathers(recipe) and recipe.rollout.gather != "modules" and recipe.rollout.engine == "local":
            yield of_recipe("rollout", "gather", "modules")
        yield of_recipe("rollout", "max_rows", max(1, recipe.rollout.max_rows // 2))
    if recipe.eval.batch_size > 1 and stage.evaluate:
        yield of_recipe("eval", "batch_size", recipe.eval.batch_size // 2)
    if recipe.shared_prefix_check:
        yield of_recipe("", "shared_prefix_check", False)
    wanted = ["zero2_offload"] if processes == 1 else ["zero2", "zero3", "zero2_offload", "zero3_offload"]
    for preset in wanted if recipe.deepspeed != wanted[-1] else ():
        change = of_recipe("", "deepspeed", preset)
        if not deepspeed_problems(change[1]):
            yield change


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
