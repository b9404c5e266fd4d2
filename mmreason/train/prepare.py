"""Everything a run needs before its first step: rows, model, renderer, feed, and the weights a stage starts from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mmreason.data.media import limits_of
from mmreason.data.quarantine import Quarantine
from mmreason.data.sources import load_rows
from mmreason.model.feature_cache import FeatureCache
from mmreason.model.load import Loaded, load_model
from mmreason.model.quantize import is_quantized
from mmreason.model.save import copy_adapters, copy_weights, read_weights
from mmreason.plugins import load_plugins
from mmreason.render import Renderer
from mmreason.schema import Recipe, Stage
from mmreason.train.context import Context
from mmreason.train.deepspeed_config import read as read_deepspeed
from mmreason.train.distributed import Backend, make_backend, shard
from mmreason.train.feed import Feed
from mmreason.train.metrics import Metrics
from mmreason.train.remote import remote_engine, unsent_rows
from mmreason.types import Sample


def prepare(recipe: Recipe, run_dir: Path, checkpoint: Path | None) -> Context:
    """Load rows and model (from `checkpoint` when there is one) and put the run's parts together."""
    if recipe.num_threads is not None:  # else torch's own choice, which heeds OMP_NUM_THREADS and torchrun
        torch.set_num_threads(recipe.num_threads)
    load_plugins(recipe.plugins)
    backend = make_backend(recipe.backend, read_deepspeed(recipe), recipe.ddp_timeout)
    seed_everything(recipe.seed + backend.rank)
    sources = load_sources(recipe, run_dir, backend)
    if unsent := unsent_rows(recipe, sources):
        raise ValueError("; ".join(unsent))
    loaded = _load(recipe, sources, checkpoint)
    seed_everything(
        recipe.seed + backend.rank
    )  # the draw of rollouts must not depend on how weights were made
    loaded.model.to(backend.device)
    return assemble(recipe, run_dir, loaded, sources, backend)


def assemble(
    recipe: Recipe, run_dir: Path, loaded: Loaded, sources: dict[str, list[Sample]], backend: Backend
) -> Context:
    """The run's parts around a loaded model."""
    longest = max(stage.max_prompt_length for stage in recipe.stages)
    renderer = Renderer(loaded.processor, system_prompt=recipe.system_prompt, max_prompt_length=longest)
    quarantine = Quarantine(
        run_dir / "quarantine.jsonl",
        totals={name: len(rows) for name, rows in sources.items()},
        max_fraction=recipe.max_bad_fraction,
        writes=backend.is_main,
    )
    limits = limits_of(recipe, loaded.processor)
    return Context(
        recipe=recipe,
        run_dir=run_dir,
        model=loaded.model,
        processor=loaded.processor,
        family=loaded.family,
        renderer=renderer,
        feed=Feed(
            renderer,
            limits,
            quarantine,
            stop=recipe.on_bad_media == "stop",
            workers=recipe.dataloader_num_workers,
        ),
        quarantine=quarantine,
        backend=backend,
        metrics=Metrics(run_dir / "metrics.jsonl", recipe.report_to if backend.is_main else [], run_dir.name),
        sources=sources,
        console=Console(stderr=True, quiet=not backend.is_main),
        remote=remote_engine(recipe, run_dir, loaded.model, loaded.processor, loaded.family, backend),
        features=None if recipe.shared_prefix == "off" else FeatureCache(recipe.feature_cache_bytes),
    )


def load_sources(recipe: Recipe, run_dir: Path, backend: Backend) -> dict[str, list[Sample]]:
    """Rows of every source; each world is made once, the processes taking turns at them."""
    folders = {name: run_dir / "data" / name for name in recipe.data}
    mine = shard([name for name, cfg in recipe.data.items() if cfg.world is not None], backend)
    early = {name: load_rows(name, recipe.data[name], folders[name]) for name in mine}
    backend.barrier()
    return {
        name: early[name] if name in early else load_rows(name, cfg, folders[name])
        for name, cfg in recipe.data.items()
    }


def training_texts(recipe: Recipe, sources: dict[str, list[Sample]]) -> Iterable[str]:
    """What an in-process tokenizer is trained on: questions, rationales, answers of the stages' sources."""
    used = {name for stage in recipe.stages for name in stage.sources()}
    for name in sorted(used & sources.keys()):
        for sample in sources[name]:
            for message in sample.messages:
                yield from (part.text for part in message.parts if part.text)
            yield from sample.rationale.values()
            if sample.solution:
                yield sample.solution


def initial_folder(recipe: Recipe, run_dir: Path, stage: Stage) -> Path | None:
    """Where the weights lie that a stage starts from; None: the run's own initial weights."""
    names = [s.name for s in recipe.stages]
    earlier = recipe.stages[: names.index(stage.name)]
    name = stage.init_from or next((s.name for s in reversed(earlier) if not s.branch), None)
    return None if name is None else run_dir / "stages" / name


def load_initial(context: Context, stage: Stage, into: Any = None) -> None:
    """Put the weights that `stage` starts from into the run's model, or into a copy of it."""
    model = context.model if into is None else into
    folder = initial_folder(context.recipe, context.run_dir, stage)
    if folder is not None:
        load_weights(model, folder)
        return
    state = torch.get_rng_state()  # making the initial weights again must not disturb the run's draws
    fresh = _load(context.recipe, context.sources, None)
    torch.set_rng_state(state)
    copy_weights(fresh.model, model)


def whole_model(context: Context) -> Any:
    """The run's model; where it is in 4 bits, its adapters on the weights that those were made of."""
    if not is_quantized(context.model):
        return context.model
    cfg = context.recipe.model.model_copy(update={"load_in_4bit": False})
    whole = load_model(cfg, texts=lambda: [], seed=context.recipe.seed).model
    copy_adapters(context.model, whole)
    return whole


def load_weights(model: Any, folder: Path) -> None:
    """Copy the weights of a saved stage into the model, in place."""
    read_weights(model, folder)


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _load(recipe: Recipe, sources: dict[str, list[Sample]], checkpoint: Path | None) -> Loaded:
    return load_model(
        recipe.model, texts=lambda: training_texts(recipe, sources), seed=recipe.seed, checkpoint=checkpoint
    )
