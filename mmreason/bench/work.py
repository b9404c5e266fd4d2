"""What the benchmarks work on: a random model of a given shape, saved as any checkpoint is, and runs from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from mmreason.bench import reward
from mmreason.model.save import save_model
from mmreason.model.tokenizer import train_tokenizer
from mmreason.schema import Recipe
from mmreason.train.context import Context
from mmreason.train.prepare import prepare

PATCH, MERGE = 14, 2
QUESTION = "How many red squares are in the picture, and which of them stands left of the blue circle?"
TEXTS = (QUESTION, "<think>I see two red squares and one blue circle.</think><answer>3</answer>")


@dataclass(frozen=True)
class Shape:
    """A Qwen2.5-VL of random weights, and a GRPO step on it.

    Example: `Shape()` is the one that TRL is measured at: 1024 image tokens, 8 completions of 64 tokens.
    """

    hidden: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    intermediate: int = 768
    vocabulary: int = 512
    vision_depth: int = 4
    vision_hidden: int = 160
    image_tokens: int = 1024  # the square of a whole number
    new_tokens: int = 64  # of every completion
    group: int = 8
    prompts: int = 1  # groups of a step

    def as_dict(self) -> dict[str, int]:
        """All of it."""
        return asdict(self)


@contextmanager
def workplace(shape: Shape) -> Iterator[Path]:
    """A folder with `model/` and `rows.jsonl` of `shape`, gone afterwards."""
    with TemporaryDirectory(prefix="mmreason-bench-") as folder:
        checkpoint(shape, Path(folder) / "model")
        rows(shape, Path(folder))
        yield Path(folder)


def checkpoint(shape: Shape, folder: Path, texts: Iterable[str] = TEXTS) -> Path:
    """A random Qwen2.5-VL with processor and chat template, its tokenizer trained on `texts`; always the same."""
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    side = round(shape.image_tokens**0.5) * MERGE * PATCH
    size = {"shortest_edge": (MERGE * PATCH) ** 2, "longest_edge": max(side, 4 * PATCH) ** 2}
    half = shape.hidden // shape.heads // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 4096,
            "initializer_range": 0.08,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "rope_scaling": {
                "rope_type": "default",
                "type": "mrope",
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
            },
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": 2 * shape.vision_hidden,
            "num_heads": 4,
            "out_hidden_size": shape.hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "fullatt_block_indexes": [shape.vision_depth - 1],
            "initializer_range": 0.08,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH, size=size),
        chat_template=tokenizer.chat_template,
    )
    return save_model(model, processor, folder)


def picture(shape: Shape, number: int) -> Image.Image:
    """A square of coloured blocks that makes exactly `image_tokens` tokens."""
    side = round(shape.image_tokens**0.5)
    if side**2 != shape.image_tokens:
        raise ValueError(
            f"image_tokens={shape.image_tokens} is no square; take {side**2} or {(side + 1) ** 2}"
        )
    blocks = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side * MERGE * PATCH,) * 2, Image.Resampling.NEAREST)


def rows(shape: Shape, folder: Path, count: int = 4) -> Path:
    """`rows.jsonl` with `count` times the prompts of a step, each on a picture of its own."""
    lines = []
    for number in range(count * shape.prompts):
        picture(shape, number).save(folder / f"{number}.png")
        parts = [{"type": "image", "image": f"{number}.png"}, {"type": "text", "text": QUESTION}]
        row = {"messages": [{"role": "user", "content": parts}], "solution": "3", "problem_type": "numeric"}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "rows.jsonl"


def grpo_recipe(shape: Shape, folder: Path, shared_prefix: str) -> Recipe:
    """One GRPO stage on a workplace: on-policy, no KL, the whole model learns."""
    stage = {
        "type": "grpo",
        "name": "grpo",
        "data": ["rows"],
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "max_steps": 1000,
        "per_device_train_batch_size": shape.group * shape.prompts,
        "num_generations": shape.group,
        "max_completion_length": shape.new_tokens,
        "max_tokens_per_micro_batch": 2
        * shape.group
        * shape.prompts
        * (shape.image_tokens + shape.new_tokens),
        "reward_funcs": [f"{reward.__file__}:varied"],
    }
    tree = {
        "output_dir": str(folder / shared_prefix),
        "model": {"model_name_or_path": str(folder / "model")},
        "data": {"rows": {"path": str(folder / "rows.jsonl")}},
        "stages": [stage],
        "shared_prefix": shared_prefix,
        "shared_prefix_check": False,  # it computes the first step both ways
        "num_threads": torch.get_num_threads(),
    }
    return Recipe.model_validate(tree)


def context_of(recipe: Recipe) -> Context:
    """The run's parts; completions never end by themselves, so that every row has all its tokens."""
    context = prepare(recipe, Path(recipe.output_dir), None)
    renderer = context.renderer
    renderer.placeholder_ids = tuple(sorted({*renderer.placeholder_ids, *renderer.eos_ids}))
    return context
