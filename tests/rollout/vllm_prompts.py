"""A tiny native model that vLLM can serve, prompts with pictures for it, and the engine around an address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmreason.bench.work import Shape, checkpoint
from mmreason.model.load import load_model
from mmreason.render import Renderer
from mmreason.rollout.vllm_requests import Prompt
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import ModelConfig, RolloutConfig
from mmreason.types import DecodedMedium, MediumRef, Message, Part, Sample

# heads of 32: vLLM's attention on a CPU takes no smaller ones
SHAPE = Shape(
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate=128,
    vocabulary=384,
    vision_depth=2,
    vision_hidden=64,
    image_tokens=64,
)
LOOK = "Look at every row. "


def tiny_served(folder: Path) -> Path:
    """A checkpoint of SHAPE."""
    return checkpoint(SHAPE, folder)


def loaded(folder: Path, **keys: Any) -> Any:
    """The model and its processor."""
    return load_model(ModelConfig(model_name_or_path=str(folder), **keys), texts=lambda: [], seed=0)


def prompt(renderer: Renderer, number: int, pictures: int = 1, text: str = "How many squares?") -> Prompt:
    """A question on pictures of noise, each of another size."""
    rng = np.random.default_rng(number)
    media = []
    for i in range(pictures):
        noise = rng.integers(0, 256, (84 + 28 * i + 10 * number, 100, 3), dtype=np.uint8)
        media.append(DecodedMedium("image", f"{number}-{i}.png", image=Image.fromarray(noise)))
    parts = (*(Part("image", medium=i) for i in range(pictures)), Part("text", text=text))
    refs = tuple(MediumRef("image", medium.name) for medium in media)
    sample = Sample(f"rows:{number}", "rows", (Message("user", parts),), refs)
    return Prompt(sample, media, renderer.prompt(sample, media))


def engine(base_url: str, folder: Path, model: Any, run: str = "run", **keys: Any) -> VLLMRollout:
    """The engine, impatient unless told otherwise."""
    config = RolloutConfig(engine="vllm", base_url=base_url, **{"max_wait": 0.0, "timeout": 60.0, **keys})
    return VLLMRollout(config, folder, model, run)
