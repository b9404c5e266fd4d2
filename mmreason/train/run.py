"""One run, from a recipe to a model folder: prepare, evaluate, stages, evaluate, save, report.

`train` may be killed anywhere: the next call on the same output_dir goes on from the newest complete checkpoint.
"""

from __future__ import annotations

import copy
import logging
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from mmreason.model.load import gradient_checkpointing
from mmreason.model.parts import freeze, parameter_groups
from mmreason.model.save import save_model
from mmreason.schema import GRPOStage, PretaskStage, Recipe, SFTStage, SharedPrefix, Stage
from mmreason.train import folder
from mmreason.train.checkpoint import load_state, newest_complete, save_checkpoint
from mmreason.train.context import Context, Method
from mmreason.train.distributed import lost_ranks_named
from mmreason.train.evaluation import ablate_run, ablations_fit, evaluate_stage
from mmreason.train.grpo import GRPO
from mmreason.train.loop import Budget, run_stage
from mmreason.train.micro import Sharing
from mmreason.train.optim import make_optimizer, make_schedule
from mmreason.train.prepare import load_initial, load_weights, prepare
from mmreason.train.pretask import Pretask
from mmreason.train.sft import SFT
from mmreason.train.step import Trainer
from mmreason.train.together import shower

log = logging.getLogger(__name__)


@lost_ranks_named()
def train(recipe: Recipe) -> dict[str, Any]:
    """Run the recipe to its end and return what it showed: `{"run_dir", "model", "eval", "seconds", "is_main"}`.

    Raises:
        ValueError: the recipe, its data or its output_dir does not fit; the message says what to do.
        ConnectionError: another process of this run has stopped, or is too late.
    """
    began = time.perf_counter()
    run_dir = Path(recipe.output_dir)
    folder.open_run(recipe, run_dir)
    checkpoint = newest_complete(run_dir) if recipe.resume_from_checkpoint else None
    context = prepare(recipe, run_dir, checkpoint)
    if context.backend.is_main:
        folder.write_roots(context)
        context.metrics.watch_memory()
    with closing(context.feed), nullcontext() if context.remote is None else closing(context.remote):
        ablations_fit(context)
        if not all(isinstance(stage, PretaskStage) for stage in recipe.stages):
            Sharing(recipe.shared_prefix).required(context.model)
        position = _position(context, checkpoint)
        if checkpoint is None and recipe.eval.before:
            evaluate_stage(context, "before")
        for index, stage in enumerate(recipe.stages):
            if index < position["stage"]:
                continue
            _stage(context, index, stage, position, checkpoint if index == position["stage"] else None)
            if stage.evaluate:
                evaluate_stage(context, stage.name)
        model = _finish(context)
        ablate_run(context)
    seconds = position["before_seconds"] + time.perf_counter() - began
    context.metrics.close()
    if context.backend.is_main:
        folder.write_timing(run_dir, context.seconds, seconds, context.metrics.peak_memory)
    context.backend.close()
    return {
        "run_dir": str(run_dir),
        "model": str(model),
        "eval": folder.read_eval(run_dir),
        "seconds": seconds,
        "is_main": context.backend.is_main,
    }


def _position(context: Context, checkpoint: Path | None) -> dict[str, Any]:
    """Where the run stands: stage, step in it, global step; restores the random state of a resumed run."""
    if checkpoint is None:
        context.metrics.keep_until(0)
        return {"stage": 0, "step": 0, "global_step": 0, "elapsed": 0.0, "done": False, "before_seconds": 0.0}
    shared, local, rows = load_state(checkpoint, context.backend)
    context.seconds.update(shared["seconds"])
    context.quarantine.restore(shared["quarantine"])
    if context.backend.is_main:
        context.metrics.keep_until(shared["global_step"])
        context.console.print(f"going on from {checkpoint} (global step {shared['global_step']})")
    return {
        **shared,
        "method": local["method"],
        "rows": rows,
        "before_seconds": sum(shared["seconds"].values()),
    }


def _stage(
    context: Context, index: int, stage: Stage, position: dict[str, Any], checkpoint: Path | None
) -> None:
    """Train one stage to its end; its weights then lie in `stages/NAME` and a checkpoint says that it is done."""
    if checkpoint is not None and position["done"]:
        position["done"] = False
        return
    start, elapsed = (position["step"], position["elapsed"]) if checkpoint is not None else (0, 0.0)
    first_global = position["global_step"] - start
    if checkpoint is None:
        load_initial(context, stage)
    budget, method = _method(context, stage)
    trainer = make_trainer(context, stage)
    if isinstance(method, GRPO):
        method.trainer = trainer
    if checkpoint is not None:
        method.load_state_dict(position["method"], position["rows"])
        if start:
            context.backend.load_optimizer(checkpoint, trainer.optimizer)
            trainer.skipped_in_a_row = position["skipped_in_a_row"]

    def save(step: int, seconds: float, *, done: bool = False) -> None:
        context.seconds[stage.name] = seconds
        state = {
            "stage": index,
            "step": step,
            "global_step": first_global + step,
            "elapsed": seconds,
            "done": done,
            "skipped_in_a_row": trainer.skipped_in_a_row,
        }
        save_checkpoint(
            context.run_dir / f"checkpoint-{first_global + step}",
            model=context.model,
            processor=context.processor,
            optimizer=trainer.optimizer,
            shared={**state, **_shared(context)},
            local={"method": method.state_dict()},
            rows=method.buffered(),
            backend=context.backend,
            keep=context.recipe.save_total_limit,
        )
        position.update(state)

    end, elapsed = run_stage(
        context,
        stage,
        method,
        trainer,
        budget,
        start=start,
        first_global=first_global,
        elapsed=elapsed,
        save=save,
    )
    with context.backend.whole():
        if context.backend.is_main:
            save_model(context.model, context.processor, context.run_dir / "stages" / stage.name, merge=False)
    save(end, elapsed, done=True)
    context.backend.release()


def _shared(context: Context) -> dict[str, Any]:
    """What a checkpoint keeps of the run itself."""
    processes = context.backend.world_size
    return {
        "seconds": context.seconds,
        "quarantine": context.quarantine.state_dict(),
        "rows_of_a_step": {s.name: folder.rows_of_a_step(vars(s), processes) for s in context.recipe.stages},
    }


def _method(context: Context, stage: Stage) -> tuple[Budget, Method]:
    rows = stage.per_device_train_batch_size * stage.gradient_accumulation_steps * context.backend.world_size
    if isinstance(stage, GRPOStage):
        pool = sum(len(context.sources[name]) for name in stage.data)
        prompts = rows // stage.num_generations
        steps = stage.max_steps or _epoch_steps(stage.num_train_epochs, pool, prompts) * stage.num_iterations

        def reference() -> Any:
            other = copy.deepcopy(context.model)
            load_initial(context, stage, into=other)
            return other.requires_grad_(False).eval()

        return Budget(steps=steps), GRPO(context, stage, steps, reference)
    method: Pretask | SFT
    if isinstance(stage, PretaskStage):
        method = Pretask(context, stage)
    else:
        assert isinstance(stage, SFTStage)
        method = SFT(context, stage)
        if stage.time_of is not None:
            return Budget(seconds=context.seconds[stage.time_of]), method
    steps = stage.max_steps or _epoch_steps(stage.num_train_epochs, method.loader.epoch_rows, rows)
    return Budget(steps=steps), method


def _epoch_steps(epochs: float | None, pool: float, rows: int) -> int:
    assert epochs is not None
    return max(1, round(epochs * pool / rows))


def make_trainer(context: Context, stage: Stage) -> Trainer:
    """What a stage's steps update, with the stage's freezing and recomputation set on the model."""
    gradient_checkpointing(context.model, stage.gradient_checkpointing)
    freeze(context.model, context.family, context.recipe.model, stage.freeze)
    groups = parameter_groups(
        context.model, context.family, context.recipe.model, stage.learning_rate, stage.weight_decay
    )
    return Trainer(
        model=context.model,
        family=context.family,
        backend=context.backend,
        optimizer=make_optimizer(groups, stage),
        schedule=make_schedule(stage.lr_scheduler_type, stage.warmup_ratio),
        pad_id=context.renderer.pad_id,
        max_grad_norm=stage.max_grad_norm,
        max_tokens=stage.max_tokens_per_micro_batch,
        bf16=context.recipe.bf16,
        sharing=Sharing(_training_prefix(context)),
        check=context.recipe.shared_prefix_check,
        show=shower(context.renderer, context.feed.limits.sampling_rate),
        offload=stage.activation_offload,
    )


def _training_prefix(context: Context) -> SharedPrefix:
    """Whether training shares prompts: under ZeRO-3 it does not, since it scores hidden states outside the model."""
    shared = context.recipe.shared_prefix
    if shared == "off" or not context.backend.gathers:
        return shared
    log.warning(
        "training computes rows one by one (zero3): the head's weights are there only while the model runs"
    )
    return "off"


def _finish(context: Context) -> Path:
    """Write `model/` from the end of the main line, with a probe of one rendered row per modality beside it."""
    main = [stage for stage in context.recipe.stages if not stage.branch][-1]
    load_weights(context.model, context.run_dir / "stages" / main.name)
    out = context.run_dir / "model"
    if context.backend.is_main:
        folder.write_model(context, out)
    return out
