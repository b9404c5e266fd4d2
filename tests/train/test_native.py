"""Every kind of model through the same run: one SFT step and one GRPO step on PNG files; adapters; frozen parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmreason.model.load import load_model
from mmreason.schema import ModelConfig, Recipe
from mmreason.train.run import train
from tests.tiny import KINDS
from tests.train import small
from tests.train.pictures import write_pictures

MODALITIES = {"image", "text"}


def recipe(out: Path, rows: Path, **model: Any) -> Recipe:
    """All six rows in one SFT step, then one GRPO step on the three rows of every shape."""
    sft = {"type": "sft", "name": "sft", "data": ["rows"], "rationale": "free", "max_steps": 1}
    sft |= {"learning_rate": 1e-2, "per_device_train_batch_size": 6, "warmup_ratio": 0.0}
    grpo = {"type": "grpo", "name": "grpo", "data": ["rows"], "max_steps": 1, "num_generations": 2}
    grpo |= {"learning_rate": 1e-2, "per_device_train_batch_size": 12, "max_completion_length": 6}
    grpo |= {"reward_funcs": [small.REWARD], "warmup_ratio": 0.0, "beta": 0.02}
    return Recipe.model_validate(
        {
            "output_dir": str(out),
            "num_threads": 1,
            "model": model,
            "data": {"rows": {"path": str(rows)}},
            "stages": [sft, grpo],
            "eval": {"data": ["rows"], "max_completion_length": 4, "before": False},
        }
    )


@pytest.fixture
def folder_of(assembled_folder: Path, native_folder: Callable[[str], Path]) -> Callable[[str], Path]:
    return lambda kind: assembled_folder if kind == "assembled" else native_folder(kind)


def start_of(folder: Path) -> dict[str, torch.Tensor]:
    return small.weights(folder)


def vision(name: str) -> bool:
    return ("vision_tower." in name or "visual." in name) and "merger" not in name


def projector(name: str) -> bool:
    return "vision_projector" in name or "merger" in name


def llm(name: str) -> bool:
    return ".layers." in name and not vision(name)


def moved(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: Callable[[str], bool]
) -> float:
    """Largest change of the part's parameters."""
    names = [name for name in before if part(name)]
    assert names and before.keys() == after.keys()
    return max(float((before[n].float() - after[n].float()).abs().max()) for n in names)


@pytest.mark.parametrize("kind", ["assembled", *KINDS])
def test_one_step_of_each_stage(
    kind: str, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    folder = folder_of(kind)
    out = tmp_path / "run"
    train(recipe(out, write_pictures(tmp_path / "rows"), model_name_or_path=str(folder)))
    sft, grpo = small.metrics(out)
    assert sft["rows"] == 6 and grpo["rows"] == 12
    for line in (sft, grpo):
        assert math.isfinite(line["loss"]) and line["grad_norm"] > 0 and line["skipped_steps"] == 0
    assert grpo["frac_reward_zero_std"] < 1
    ends = {name: small.weights(out / "stages" / name) for name in ("sft", "grpo")}
    for part in (vision, projector, llm):
        assert moved(start_of(folder), ends["sft"], part) > 1e-3
        assert moved(ends["sft"], ends["grpo"], part) > 1e-3
    assert small.same_weights(out / "stages" / "grpo", out / "model")
    assert small.evaluation(out)["grpo"]["by_modality"].keys() == MODALITIES
    assert not (out / "quarantine.jsonl").exists()


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl"])
def test_a_frozen_tower_stays_as_it_was(
    kind: str, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    folder, out = folder_of(kind), tmp_path / "run"
    rows = write_pictures(tmp_path / "rows")
    train(recipe(out, rows, model_name_or_path=str(folder), freeze_vision_tower=True))
    before, after = start_of(folder), small.weights(out / "model")
    assert moved(before, after, vision) == 0.0
    assert moved(before, after, llm) > 1e-3 and moved(before, after, projector) > 1e-3


@pytest.mark.parametrize("kind", ["assembled", "qwen3_vl"])
def test_adapters_train_and_the_merged_model_is_a_plain_one(
    kind: str, folder_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "assembled":  # once with the probe: plain transformers, in a process that has nothing of ours
        small.without_probe(monkeypatch)
    folder, out = folder_of(kind), tmp_path / "run"
    rows = write_pictures(tmp_path / "rows")
    model = {"model_name_or_path": str(folder), "use_peft": True, "lora_r": 2}
    train(recipe(out, rows, **model))
    sft, grpo = small.metrics(out)
    assert math.isfinite(sft["loss"]) and math.isfinite(grpo["loss"]) and grpo["grad_norm"] > 0
    adapters = small.weights(out / "stages" / "grpo")
    assert any("lora_A" in name for name in adapters)
    assert sum(t.numel() for t in adapters.values()) < sum(t.numel() for t in start_of(folder).values()) / 2
    merged = small.weights(out / "model")
    assert merged.keys() == start_of(folder).keys()  # a plain model: nothing of adapters is left in it
    assert moved(start_of(folder), merged, llm) > 1e-4
    plain = AutoModelForImageTextToText.from_pretrained(out / "model").eval()
    again = load_model(
        ModelConfig(**model), texts=lambda: [], seed=0, checkpoint=out / "stages" / "grpo"
    ).model.eval()
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, again(ids).logits, atol=1e-5, rtol=1e-5)
    assert AutoProcessor.from_pretrained(out / "model").chat_template
    if kind != "assembled":
        assert (out / "probe.safetensors").is_file()
