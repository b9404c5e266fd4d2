"""Encoders in a run: each distinct picture once for all steps while frozen, and once a pass while learning."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmreason.schema import Recipe
from mmreason.train.context import Context
from mmreason.train.grpo import GRPO
from mmreason.train.loop import Budget, run_stage
from mmreason.train.prepare import prepare
from mmreason.train.run import make_trainer
from tests.train import small

PROMPTS, GROUP, STEPS = 2, 3, 4
STAGE = small.GRPO | {
    "gate": {"name": "none"},
    "per_device_train_batch_size": PROMPTS * GROUP,
    "num_iterations": 1,
    "max_steps": STEPS,
    "save_steps": 100,
}


def run(out: Path, *, frozen: bool, **keys: Any) -> tuple[Context, list[bytes]]:
    """A short GRPO stage with a reference and old log-probabilities; the pictures that the tower encoded, in order."""
    tree = small.recipe(out, stages=[STAGE]).model_dump(mode="json") | keys
    tree["stages"][0]["freeze"] = ["vision", "projector"] if frozen else []
    context = prepare(Recipe.model_validate(tree), out, None)
    stage: Any = context.recipe.stages[0]
    reference = copy.deepcopy(context.model).requires_grad_(False).eval()
    method = GRPO(context, stage, STEPS, lambda: reference)
    method.trainer = make_trainer(context, stage)
    method.trainer.check = False  # it encodes once more, both ways
    with pictures(context.model) as mine, pictures(reference) as theirs:
        run_stage(
            context,
            stage,
            method,
            method.trainer,
            Budget(steps=STEPS),
            start=0,
            first_global=0,
            elapsed=0.0,
            save=lambda step, elapsed: None,
        )
    return context, mine + theirs


@contextmanager
def pictures(model: Any) -> Iterator[list[bytes]]:
    seen: list[bytes] = []
    hook = model.vision_tower.register_forward_pre_hook(
        lambda module, args: seen.extend(x.numpy().tobytes() for x in args[0])
    )
    yield seen
    hook.remove()


def test_frozen_pictures_are_encoded_once_in_all(tmp_path: Path) -> None:
    context, seen = run(tmp_path, frozen=True)
    assert context.features is not None
    assert set(Counter(seen).values()) == {1} and 2 <= len(seen) <= 2 * STEPS
    assert len(context.features) == len(seen) and context.features.bytes > 0


def test_pictures_of_a_tower_that_learns(tmp_path: Path) -> None:
    """Rollout and update encode each prompt's picture once; the frozen reference each picture once in all."""
    _, seen = run(tmp_path, frozen=False)
    _, frozen = run(tmp_path / "frozen", frozen=True)
    prompts = Counter(frozen)
    assert set(prompts) == set(seen)
    # prompts of one step that show one picture share it
    assert 2 * STEPS + len(prompts) <= len(seen) <= 2 * PROMPTS * STEPS + len(prompts)


def test_off_encodes_every_row(tmp_path: Path) -> None:
    context, seen = run(tmp_path, frozen=True, shared_prefix="off")
    assert context.features is None
    # rollout, reference, the log's token weights and update, each with a copy of the picture for every row
    assert len(seen) == 4 * STEPS * PROMPTS * GROUP


def test_without_room_nothing_is_kept_but_rows_still_share(tmp_path: Path) -> None:
    context, seen = run(tmp_path, frozen=True, feature_cache_bytes=0)
    assert context.features is not None and len(context.features) == 0
    assert 4 * STEPS <= len(seen) <= 4 * STEPS * PROMPTS


@pytest.mark.parametrize("frozen", [True, False])
def test_the_same_run_with_and_without(frozen: bool, tmp_path: Path) -> None:
    """What is learned does not depend on whether features are shared."""
    ends = []
    for mode in ("off", "auto"):
        context, _ = run(tmp_path / mode, frozen=frozen, shared_prefix=mode)
        ends.append({name: p.detach().clone() for name, p in context.model.named_parameters()})
    for name, weight in ends[0].items():
        assert float((weight - ends[1][name]).abs().max()) < 2e-4, name
