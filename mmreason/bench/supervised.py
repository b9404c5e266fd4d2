"""`bench sft`: questions on the same pictures, padded rows of one question against rows that share a picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmreason.bench.measure import LinearFlops, compared, environment, interleaved, peak_rss
from mmreason.bench.work import QUESTION, TEXTS, Shape, picture
from mmreason.schema import Recipe, SFTStage
from mmreason.train.prepare import prepare
from mmreason.train.run import make_trainer
from mmreason.train.sft import SFT
from mmreason.train.step import train_step

PICTURES, QUESTIONS = 8, 4
SIDES = {"plain": 1, "shared": QUESTIONS}  # questions that share a row


def sft(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{plain_s, shared_s, ratio, flop_ratio, tokens_per_s, loss_relative_difference, ...}` of one SFT step.

    A step learns 4 questions on each of 8 pictures, with ragged answers; `tokens_per_s` counts the tokens that the
    questions have when each stands alone, padding left out.
    """
    with TemporaryDirectory(prefix="mmreason-bench-") as name:
        folder = Path(name)
        _rows(shape, folder)
        sides = {name: _step(shape, folder, together) for name, together in SIDES.items()}
        counts, first = {}, {}
        for name, side in sides.items():
            with LinearFlops() as count:
                first[name] = side()
            counts[name] = count.total
        taken = interleaved(sides, rounds)
    told = compared(taken, "plain", "shared")
    tokens = first["plain"]["tokens/input"]
    loss = {name: metrics["loss"] for name, metrics in first.items()}
    return {
        "bench": "sft",
        **told,
        "flop_ratio": counts["plain"] / counts["shared"],
        "tokens_per_s": {name: tokens / told[f"{name}_s"] for name in SIDES},
        "loss_relative_difference": abs(loss["plain"] - loss["shared"]) / abs(loss["plain"]),
        "shape": _sizes(shape) | {"pictures": PICTURES, "questions": PICTURES * QUESTIONS, "tokens": tokens},
        "peak_rss_bytes": peak_rss(),
        "environment": environment(),
    }


def _sizes(shape: Shape) -> dict[str, int]:
    kept = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vision_depth", "vision_hidden")
    return {name: value for name, value in shape.as_dict().items() if name in kept} | {
        "image_tokens": _image_tokens(shape)
    }


def _image_tokens(shape: Shape) -> int:
    return min(shape.image_tokens, 256)


def _rows(shape: Shape, folder: Path) -> None:
    """Pictures, and questions on them whose answers are of ragged lengths."""
    lines = []
    for number in range(PICTURES):
        picture(Shape(image_tokens=_image_tokens(shape)), number).save(folder / f"{number}.png")
        for question in range(QUESTIONS):
            answer = " ".join(itertools.repeat(TEXTS[1], 1 + (number * QUESTIONS + question) * 5 % 7))
            turns = [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": f"{number}.png"},
                        {"type": "text", "text": QUESTION},
                    ],
                },
                {"role": "assistant", "content": answer},
            ]
            lines.append(json.dumps({"messages": turns, "solution": "3", "problem_type": "numeric"}))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _recipe(shape: Shape, folder: Path, together: int) -> Recipe:
    """A fresh assembled model of the shape; an optimizer step is the whole of the rows."""
    side = round(_image_tokens(shape) ** 0.5)
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_hidden_layers": shape.vision_depth,
        "num_attention_heads": 4,
        "patch_size": 8,
    }
    llm = {
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "max_position_embeddings": 4096,
    }
    stage = {
        "type": "sft",
        "name": "sft",
        "data": ["rows"],
        "learning_rate": 1e-5,
        "max_steps": 1000,
        "questions_per_row": together,
        "per_device_train_batch_size": PICTURES * QUESTIONS // together,
        "max_tokens_per_micro_batch": 4096,
    }
    tree = {
        "output_dir": str(folder / str(together)),
        "model": {"assemble": {"vision": vision, "llm": llm, "image_size": 8 * side}},
        "data": {"rows": {"path": str(folder / "rows.jsonl")}},
        "stages": [stage],
        "shared_prefix": "off" if together == 1 else "auto",
        "num_threads": torch.get_num_threads(),
    }
    return Recipe.model_validate(tree)


def _step(shape: Shape, folder: Path, together: int) -> Callable[[], dict[str, float]]:
    """A call that does the next SFT step; returns its metrics."""
    recipe = _recipe(shape, folder, together)
    context = prepare(recipe, Path(recipe.output_dir), None)
    stage = recipe.stages[0]
    assert isinstance(stage, SFTStage)
    method, trainer = SFT(context, stage), make_trainer(context, stage)
    numbers = itertools.count(1)

    def go() -> dict[str, float]:
        batch = method.collect(0.0, next(numbers))
        with context.encoding():
            return train_step(trainer, batch.rows, batch.objective, 0.0)

    return go
