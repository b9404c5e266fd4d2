"""vLLM as the engine of rollouts, where a recipe names it; and what of a recipe it cannot serve."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmreason.model.family import Family
from mmreason.objective import Correction
from mmreason.rollout.vllm_inside import VLLMInside, missing
from mmreason.rollout.vllm_requests import LOCAL, VIDEO
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import GRPOStage, Recipe
from mmreason.train.distributed import Backend
from mmreason.types import Sample

WEIGHTS = "rollout_weights"  # in output_dir
ASSEMBLED = (
    "vLLM has no class for an assembled model; allowed are a native model that vLLM knows (Qwen2.5-VL ...) as "
    "model.model_name_or_path, or rollout.engine: local"
)
FREE = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}


def remote_engine(
    recipe: Recipe, run_dir: Path, model: Any, processor: Any, family: Family, backend: Backend
) -> VLLMRollout | VLLMInside | None:
    """The engine of `rollout.engine: vllm`, ready; None for the local one, or where no stage rolls out.

    Raises:
        ValueError: vLLM cannot serve this model, or is not there; or the server does not fit or answer.
    """
    if recipe.rollout.engine == "local" or not any(isinstance(s, GRPOStage) for s in recipe.stages):
        return None
    if family.name == "assembled":
        raise ValueError(f"rollout.engine: {ASSEMBLED}")
    run = backend.gather(uuid.uuid4().hex)[0]
    place = recipe.rollout.weights_dir
    if place is None and backend.is_main:
        shutil.rmtree(run_dir / WEIGHTS, ignore_errors=True)  # of this run, when it was killed
    if recipe.rollout.mode == "colocate":
        if wrong := missing():
            raise ValueError(f"rollout.mode: {wrong}")
        if backend.world_size > 1:
            raise ValueError(
                f"rollout.mode: colocate is for one process; got {backend.world_size}, which can share a server: "
                "take mode: server"
            )
        return VLLMInside(recipe.rollout, run_dir / WEIGHTS / run[:12], model, processor)
    folder = (run_dir / WEIGHTS if place is None else Path(place)) / run[:12]  # runs may share the place
    engine = VLLMRollout(recipe.rollout, folder, model, run, pushes=backend.is_main)
    engine.connect()
    return engine


def correction_of(recipe: Recipe) -> Correction | None:
    """How the step corrects what another engine sampled; None for the local one, which samples as it trains."""
    if recipe.rollout.engine == "local":
        return None
    rollout = recipe.rollout
    return Correction(
        rollout.importance_sampling_mode,
        rollout.importance_sampling_clip_max,
        rollout.importance_sampling_clip_min,
    )


def remote_problems(recipe: Recipe) -> list[str]:
    """What of a recipe vLLM rollouts cannot do, without asking a server."""
    if recipe.rollout.engine == "local":
        return []
    problems = [f"rollout.engine: {ASSEMBLED}"] if recipe.model.assemble is not None else []
    if recipe.rollout.mode == "colocate" and (wrong := missing()):
        problems.append(f"rollout.mode: {wrong}")
    if recipe.model.load_in_4bit:
        problems.append(
            "rollout.engine: vllm is sent whole weights, and those of model.load_in_4bit are in 4 bits; allowed is "
            "rollout.engine: local, or load_in_4bit: false"
        )
    for stage in [s for s in recipe.stages if isinstance(s, GRPOStage)]:
        for key, free in FREE.items():
            if getattr(stage, key) != free:
                problems.append(
                    f"stages.{stage.name}.{key}: got {getattr(stage, key):g}; allowed with rollout.engine: vllm is "
                    f"{free:g}, since the ratio of a narrowed distribution to the trainer's whole one would be biased; "
                    "remove the key, or take rollout.engine: local"
                )
    return problems


def unsent_rows(recipe: Recipe, sources: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Sources whose rows cannot be sent, one problem for each."""
    if recipe.rollout.engine == "local":
        return []
    problems = []
    for stage in [s for s in recipe.stages if isinstance(s, GRPOStage)]:
        for name in stage.data:
            rows = [s.id for s in sources.get(name, ()) if any(m.kind == "video" for m in s.media)]
            if rows:
                problems.append(
                    f"stages.{stage.name}.data: {len(rows)} rows of {name} (the first is {rows[0]}) cannot be sent "
                    f"with rollout.engine: vllm: {VIDEO}; leave the source out, or {LOCAL}"
                )
    return problems
