"""What is wrong with a recipe that no row tells: trackers, rewards, gates, ablations, a stage its model cannot take."""

from __future__ import annotations

import importlib.util

from mmreason.curriculum import gate_problem
from mmreason.evaluate import parse_ablation
from mmreason.model.load import Loaded
from mmreason.model.parts import freeze
from mmreason.model.quantize import quantization_problem
from mmreason.model.shared_fit import needs_side_by_side, unpackable
from mmreason.rewards import reward_problems, user_rewards
from mmreason.schema import GRPOStage, PretaskStage, Recipe, SFTStage, StageConfig, undivided
from mmreason.train.deepspeed_config import deepspeed_problems, gathers
from mmreason.train.micro import Sharing
from mmreason.train.pretask import needs_assembled
from mmreason.train.remote import remote_problems


def settings_problems(recipe: Recipe, processes: int = 1) -> list[str]:
    """What is wrong with trackers, groups, rewards, gates and ablations: it needs no rows, and would else show late.

    `processes` train together.
    """
    problems = [
        f"report_to: {package} is not installed; pip install 'mmreason[tracking]', or remove it"
        for package in sorted({"tensorboard", "wandb"} & set(recipe.report_to))
        if importlib.util.find_spec(package) is None
    ]
    quantized = quantization_problem(recipe.model)
    problems += [quantized] if quantized else []
    problems += deepspeed_problems(recipe)
    problems += remote_problems(recipe)
    last = [stage for stage in recipe.stages if not stage.branch][-1]
    if recipe.eval.ablate and not (recipe.eval.data and last.evaluate):
        problems.append(f"eval.ablate: needs eval.data, and stages.{last.name} with evaluate: true")
    for text in recipe.eval.ablate:
        try:
            parse_ablation(text)
        except ValueError as error:
            problems.append(f"eval.{error}")
    for stage in [s for s in recipe.stages if isinstance(s, GRPOStage)]:
        where = f"stages.{stage.name}"
        try:
            functions = user_rewards(stage.reward_funcs)
        except ValueError as error:
            problems.append(f"{where}.reward_funcs: {error}")
        else:
            wrong = reward_problems(stage.reward_funcs, stage.reward_weights, stage.reward_args, functions)
            problems += [f"{where}.reward_funcs: {problem}" for problem in wrong]
        uneven = undivided(stage, processes)
        problems += [f"{where}: {uneven}"] if uneven else []
        closed = gate_problem(stage.gate, stage.num_generations)
        problems += [f"{where}.gate: {closed}"] if closed else []
    return problems


def fits(stage: StageConfig, recipe: Recipe, loaded: Loaded) -> None:
    """Refuse a model that a stage cannot train, and freeze what the stage freezes."""
    try:
        freeze(loaded.model, loaded.family, recipe.model, stage.freeze)
        if not isinstance(stage, PretaskStage):
            Sharing(recipe.shared_prefix).required(loaded.model)
        if isinstance(stage, SFTStage) and stage.questions_per_row > 1:
            unfit = unpackable(loaded.model, recipe.shared_prefix, gathers(recipe))
            needs_side_by_side(loaded.model, loaded.family.name, recipe.model.attn_implementation, unfit)
    except ValueError as error:
        raise ValueError(f"stages.{stage.name}: {error}") from error
    if isinstance(stage, PretaskStage):
        needs_assembled(stage, loaded.family.name)
