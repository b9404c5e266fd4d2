"""`mmreason export`: a checkpoint as a plain-transformers model, adapters merged."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mmreason.model.load import ADAPTER_FILE, load_model
from mmreason.model.save import save_model
from mmreason.plugins import load_plugins
from mmreason.recipe import load_recipe
from mmreason.schema import ModelConfig, Recipe
from mmreason.train.distributed import make_backend
from mmreason.train.prepare import load_sources, training_texts


def export(checkpoint: Path, out: Path) -> Path:
    """Write the model of `checkpoint` (a checkpoint-N, a stage or a model folder) to `out`.

    Adapters alone say nothing of their base model: they are merged into the model of the run's own recipe.yaml.

    Raises:
        ValueError: no model lies there, `out` holds something, or adapters stand outside their run directory.
    """
    if not (checkpoint / "config.json").is_file() and not (checkpoint / ADAPTER_FILE).is_file():
        raise ValueError(f"export: {checkpoint} holds no model (no config.json and no {ADAPTER_FILE})")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"export: {out} is there already; name a new folder")
    run_dir = next((p for p in checkpoint.resolve().parents if (p / "recipe.yaml").is_file()), None)
    recipe = None if run_dir is None else load_recipe(run_dir / "recipe.yaml")
    if recipe is not None:
        load_plugins(recipe.plugins)
    else:
        load_plugins()
    if (checkpoint / ADAPTER_FILE).is_file():
        if recipe is None or run_dir is None:
            raise ValueError(
                f"export: {checkpoint} holds adapters; leave it in its run directory, beside recipe.yaml"
            )
        sources = load_sources(recipe, run_dir, make_backend("plain"))
        loaded = load_model(
            recipe.model.model_copy(update={"load_in_4bit": False}),
            texts=lambda: training_texts(recipe, sources),
            seed=recipe.seed,
            checkpoint=checkpoint,
        )
    else:
        loaded = load_model(_whole(checkpoint, recipe), texts=lambda: (), seed=0)
    return save_model(loaded.model, loaded.processor, out, merge=True)


def _whole(checkpoint: Path, recipe: Recipe | None) -> ModelConfig:
    """How to load a folder with whole weights: in the type they were saved in."""
    stored = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    dtype = stored.get("dtype") or stored.get("torch_dtype") or "float32"
    assert hasattr(torch, dtype), dtype
    remote = recipe is not None and recipe.model.trust_remote_code
    return ModelConfig(model_name_or_path=str(checkpoint), torch_dtype=dtype, trust_remote_code=remote)
