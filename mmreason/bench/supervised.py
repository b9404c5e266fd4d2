"""`bench sft`: SFT steps with rows padded to one length, and with rows packed; then questions on the same pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmreason.bench.measure import LinearFlops, compared, environment, interleaved, peak_rss
from mmreason.bench.work import QUESTION, TEXTS, Shape, checkpoint, picture
from mmreason.schema import Recipe, SFTStage
from mmreason.train.prepare import prepare
from mmreason.train.run import make_trainer
from mmreason.train.sft import SFT
from mmreason.train.step import train_step

ROWS = 8  # of a ragged step: what `per_device_train_batch_size` is by default
PICTURES, QUESTIONS = 8, 4


@dataclass(frozen=True)
class _Side:
    """One way of doing a step. Example: `_Side("off", 1)` pads rows of one question."""

    shared_prefix: str
    together: int  # questions that share a row


def sft(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{plain_s, shared_s, ratio, flop_ratio, tokens_per_s, loss_relative_difference, questions: {...}, ...}`.

    A step learns 8 rows of log-uniform lengths, most with a picture of its own, at the default token budget: padded
    to one length by `plain`, packed by `shared`. `questions` is a step over 4 questions on each of 8 pictures: padded
    rows of one question, and packed rows of four. `tokens_per_s` counts the tokens that rows of one question have,
    padding left out; `padding` is its share of what the LLM computes.
    """
    return {
        "bench": "sft",
        **_measured(shape, _ragged(shape), {"plain": _Side("off", 1), "shared": _Side("auto", 1)}, rounds),
        "questions": _measured(
            shape, _asked(shape), {"plain": _Side("off", 1), "shared": _Side("auto", QUESTIONS)}, rounds
        ),
        "shape": _sizes(shape) | {"rows": ROWS, "pictures": PICTURES, "questions": PICTURES * QUESTIONS},
        "peak_rss_bytes": peak_rss(),
        "environment": environment(),
    }


def _sizes(shape: Shape) -> dict[str, int]:
    """The shape without what only rollouts have."""
    return {k: v for k, v in shape.as_dict().items() if k not in ("new_tokens", "group", "prompts")}


def _measured(
    shape: Shape, rows: Sequence[tuple[int, int]], sides: dict[str, _Side], rounds: int
) -> dict[str, Any]:
    """Both sides on rows of (picture's tokens, answer's words), in turns."""
    with TemporaryDirectory(prefix="mmreason-bench-") as name:
        folder = Path(name)
        checkpoint(shape, folder / "model")
        _write(rows, folder)
        steps = {name: _step(folder, side, len(rows)) for name, side in sides.items()}
        counts, first = {}, {}
        for name, step in steps.items():
            with LinearFlops() as count:
                first[name] = step()
            counts[name] = count.total
        told = compared(interleaved(steps, rounds), "plain", "shared")
    tokens = first["plain"]["tokens/input"]
    loss = {name: metrics["loss"] for name, metrics in first.items()}
    return {
        **told,
        "flop_ratio": counts["plain"] / counts["shared"],
        "tokens": tokens,
        "tokens_per_s": {name: tokens / told[f"{name}_s"] for name in sides},
        "padding": {n: 1 - m["tokens/input"] / m["tokens/forward"] for n, m in first.items()},
        "loss_relative_difference": abs(loss["plain"] - loss["shared"]) / abs(loss["plain"]),
    }


def _spread(number: int, count: int, low: int, high: int) -> float:
    """The `number`th of `count` values from `low` to `high` whose logarithms are evenly spaced."""
    return low * (high / low) ** (number / (count - 1))


def _ragged(shape: Shape) -> list[tuple[int, int]]:
    """Every fourth row without a picture; long answers go with large and with small pictures."""
    return [
        (
            0 if i % 4 == 3 else round(_spread(i, ROWS, 4, round(shape.image_tokens**0.5))) ** 2,
            round(_spread(i * 5 % ROWS, ROWS, 4, 128)),
        )
        for i in range(ROWS)
    ]


def _asked(shape: Shape) -> list[tuple[int, int]]:
    """Pictures of up to 256 tokens, of one size; their questions' answers are ragged."""
    side = min(round(shape.image_tokens**0.5), 16)
    return [(side**2, round(_spread(i * 5 % 32, 32, 4, 64))) for i in range(PICTURES * QUESTIONS)]


def _write(rows: Sequence[tuple[int, int]], folder: Path) -> None:
    """`rows.jsonl`; where there are more rows than PICTURES, QUESTIONS of them share a picture."""
    lines = []
    each = QUESTIONS if len(rows) > PICTURES else 1
    said = TEXTS[1].split()
    for number, (tokens, words) in enumerate(rows):
        parts: list[dict[str, str]] = [{"type": "text", "text": QUESTION}]
        if tokens:
            name = f"{number // each}.png"
            if number % each == 0:
                picture(replace(Shape(), image_tokens=tokens), number).save(folder / name)
            parts.insert(0, {"type": "image", "image": name})
        answer = " ".join(itertools.islice(itertools.cycle(said), words))
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns, "solution": "3", "problem_type": "numeric"}))
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")


def _recipe(folder: Path, side: _Side, rows: int) -> Recipe:
    """The whole model learns; an optimizer step is all of the rows, at the default token budget."""
    stage = {
        "type": "sft",
        "name": "sft",
        "data": ["rows"],
        "learning_rate": 1e-5,
        "max_steps": 1000,
        "questions_per_row": side.together,
        "per_device_train_batch_size": rows // side.together,
    }
    tree = {
        "output_dir": str(folder / f"{side.shared_prefix}-{side.together}"),
        "model": {"model_name_or_path": str(folder / "model")},
        "data": {"rows": {"path": str(folder / "rows.jsonl")}},
        "stages": [stage],
        "shared_prefix": side.shared_prefix,
        "shared_prefix_check": False,  # it computes the first step both ways
        "num_threads": torch.get_num_threads(),
    }
    return Recipe.model_validate(tree)


def _step(folder: Path, side: _Side, rows: int) -> Callable[[], dict[str, float]]:
    """A call that does the next SFT step; returns its metrics."""
    recipe = _recipe(folder, side, rows)
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
