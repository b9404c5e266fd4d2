"""What a stage will need of memory, and what to change where that is more than there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import psutil
import torch

from mmreason.memory import Memory, estimate, remedies
from mmreason.model.load import Loaded
from mmreason.render import Renderer
from mmreason.schema import GRPOStage, Recipe, StageConfig
from mmreason.train.deepspeed_config import gathers
from mmreason.validate.rendering import Seen, joined, rows_of
from mmreason.validate.report import Report

PYTHON = 600_000_000  # bytes of the interpreter and its libraries, in every process


@dataclass(frozen=True)
class Room:
    """The memory of one process: a GPU's, or its share of the machine's.

    Example: `Room(80 * 10**9, on_cpu=False, processes=8)`.
    """

    size: int
    on_cpu: bool
    processes: int = 1

    def lacks(self, memory: Memory) -> int:
        """Bytes that a stage needs beyond it; 0 where it fits."""
        needed = memory.total + PYTHON + memory.offloaded if self.on_cpu else memory.total
        return max(0, needed - self.size)


def this_room(processes: int = 1, gigabytes: float | None = None) -> Room:
    """What one of `processes` has here, or on a machine that gives each of them so many GB."""
    cuda = torch.cuda.is_available()
    if gigabytes is not None:
        return Room(int(gigabytes * 1e9), not cuda, processes)
    if cuda:
        return Room(
            min(torch.cuda.mem_get_info(i)[1] for i in range(torch.cuda.device_count())), False, processes
        )
    return Room(psutil.virtual_memory().total // processes, True, processes)


def predict(
    loaded: Loaded,
    renderer: Renderer,
    recipe: Recipe,
    stage: StageConfig,
    seen: Mapping[str, Seen],
    room: Room,
    report: Report,
) -> None:
    """Predict a stage's memory by the rows that were rendered of it; a stage that does not fit is a problem."""
    rows = rows_of(stage, seen)
    if rows is None:
        report.notes.append(f"stages.{stage.name}: memory is predicted once one of its rows can be rendered")
        return
    asked = [seen[name] for name in recipe.eval.data if name in seen] if stage.evaluate else []
    evaluated = joined(asked, "prompt")
    predicted = partial(
        estimate,
        loaded,
        rows=rows,
        pad_id=renderer.pad_id,
        banned=renderer.placeholder_ids,
        seen=_drawn(recipe, stage, report),
        evaluated=None if evaluated is None else evaluated.longest,
        world=room.processes,
        on_cpu=room.on_cpu,
    )
    whole = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    recipe, memory = _as_it_gathers(recipe, stage, predicted, room, whole)
    report.memory[stage.name] = memory
    if room.lacks(memory):
        report.add([_too_large(recipe, stage, memory, room, predicted)])


def _as_it_gathers(
    recipe: Recipe, stage: StageConfig, predicted: partial[Memory], room: Room, whole: int
) -> tuple[Recipe, Memory]:
    """What a stage needs, and the recipe that it is said of: with the way that `rollout.gather: auto` will take.

    `whole` are the bytes of all weights. A run gathers them at once where 1.5 times as many are free; where that is
    not sure, the larger of both ways is told.
    """
    memory = predicted(recipe, stage)
    chooses = recipe.rollout.gather == "auto" and recipe.rollout.engine == "local" and gathers(recipe)
    if not chooses or memory.moments.get("rollout", 0) + whole // 2 <= room.size:
        return recipe, memory
    apart = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"gather": "modules"})})
    by_modules = predicted(apart, stage)
    if room.lacks(memory) or by_modules.total > memory.total:
        return apart, by_modules
    return recipe, memory


def _too_large(
    recipe: Recipe, stage: StageConfig, memory: Memory, room: Room, predicted: partial[Memory]
) -> str:
    """What the stage needs, what there is, and every change that helps."""
    moment = max(memory.moments, key=lambda name: memory.moments[name])
    said = (
        f"stages.{stage.name}: needs {_gb(memory.total)} in each process (most of all in {moment}); there are "
        f"{_gb(room.size)}"
    )
    found = remedies(recipe, stage, room.processes, predicted)
    if not found:
        return f"{said}; take a smaller model or a larger machine"
    told = [f"{remedy.change} (then {_gb(remedy.total)})" for remedy in found]
    return f"{said}; what helps, each by itself: {'; '.join(told)}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _drawn(recipe: Recipe, stage: StageConfig, report: Report) -> int:
    """Different rows that a stage draws, at most."""
    sizes = (
        cfg.count if cfg.world is not None else report.sources[name]["rows"]
        for name, cfg in recipe.data.items()
        if name in stage.sources()
    )
    there = sum(sizes)
    if stage.max_steps is None:
        return there
    a_step = stage.per_device_train_batch_size * stage.gradient_accumulation_steps
    if isinstance(stage, GRPOStage):
        rounds = 1 if stage.gate.name == "none" else stage.gate.max_rounds
        a_step = -(-a_step // stage.num_generations) * rounds
    return min(there, stage.max_steps * a_step)
