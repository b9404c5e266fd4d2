"""The smallest run that holds every kind of state, and what two runs are compared by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmreason.schema import Recipe
from tests.tiny import QWEN3, SIGLIP

REWARD = f"{Path(__file__).with_name('uneven_reward.py')}:uneven"
ASSEMBLE = {"vision": SIGLIP, "llm": QWEN3, "image_size": 32, "tokenizer": {"vocab_size": 384}}
KINDS = ["count", "colour"]
SFT: dict[str, Any] = {
    "type": "sft",
    "name": "sft",
    "data": ["warm"],
    "replay": {"base": 0.25},
    "rationale": "free",
    "thought_dropout": 0.5,
    "learning_rate": 2e-3,
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "save_steps": 2,
}
GRPO: dict[str, Any] = {
    "type": "grpo",
    "name": "grpo",
    "data": ["prompts"],
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 6,
    "num_generations": 3,
    "num_iterations": 2,
    "max_steps": 8,
    "save_steps": 3,  # odd: every other checkpoint lies between the two uses of a rollout
    "max_completion_length": 10,
    "temperature": 0.9,
    "beta": 0.04,
    "epsilon_high": 0.28,
    "reward_funcs": ["blend", REWARD],
    "sampler": {"name": "easy_to_hard", "window": 0.5},
    "gate": {"name": "balanced", "low": 0.0, "high": 0.9},
    "token_weight": {"name": "tw_grpo"},
}


def recipe(out: Path, *, stages: list[dict[str, Any]] | None = None, **keys: Any) -> Recipe:
    """An assembled model of 60k parameters; SFT with replay and thought dropout; GRPO with everything on."""
    tree: dict[str, Any] = {
        "output_dir": str(out),
        "num_threads": 1,
        "model": {"assemble": ASSEMBLE},
        "data": {
            "warm": {"world": "image", "count": 18, "seed": 1, "kinds": KINDS},
            "base": {"world": "image", "count": 6, "seed": 4, "kinds": ["cell"]},
            "prompts": {"world": "image", "count": 12, "seed": 2, "kinds": KINDS, "rationale": False},
            "held_out": {"world": "image", "count": 6, "seed": 3, "kinds": KINDS, "split": "test"},
        },
        "stages": [SFT, GRPO] if stages is None else stages,
        "eval": {"data": ["held_out"], "max_completion_length": 8},
    }
    return Recipe.model_validate(tree | keys)


def moved(run: Path, to: Path) -> Recipe:
    """Copy a run of `recipe` elsewhere, as if it had been made there; the recipe that goes on with the copy."""
    shutil.copytree(run, to)
    return recipe(to)


def without_probe(patch: pytest.MonkeyPatch) -> None:
    """Leave the probe out, which starts a process of its own; it has its own tests."""
    patch.setattr("mmreason.train.folder.write_probe", lambda *args: None)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the machine's load."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]


def evaluation(run: Path) -> Any:
    """eval.json without seconds."""

    def strip(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {k: strip(v) for k, v in tree.items() if k != "seconds"}
        return tree

    return strip(json.loads((run / "eval.json").read_text()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model or of its adapters."""
    return {
        name: t for file in sorted(folder.glob("*model.safetensors")) for name, t in load_file(file).items()
    }


def same_weights(one: Path, other: Path) -> bool:
    """Whether two saved models are equal to the bit."""
    a, b = weights(one), weights(other)
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def completions(run: Path) -> dict[str, str]:
    """Every completion file by name."""
    return {file.name: file.read_text() for file in run.glob("completions/*")}


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics line by line, evaluation, every stage's weights and the final ones, completions."""
    lines, others = metrics(one), metrics(other)
    assert len(lines) == len(others)
    for line, twin in zip(lines, others, strict=True):
        assert line == twin
    assert evaluation(one) == evaluation(other)
    for folder in (one / "stages").iterdir():
        assert same_weights(folder, other / "stages" / folder.name)
    assert same_weights(one / "model", other / "model")
    assert completions(one) == completions(other)
