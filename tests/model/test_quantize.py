"""QLoRA: refused by name where it cannot be, counted by hand, and trained for real where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmreason.memory.estimate import quantized_bytes
from mmreason.memory.rehearsal import stand_in
from mmreason.model.load import load_model
from mmreason.model.quantize import is_quantized, quantization, quantization_problem, quantized_layers
from mmreason.schema import ModelConfig, Recipe
from mmreason.train.run import train
from mmreason.validate import settings_problems
from tests.train.pictures import write_pictures
from tests.train.small import REWARD

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
# a layer's numbers in tests.tiny: q and o 32 x 32, k and v 16 x 32, three of 64 x 32
LAYER = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32


def config(folder: Path, **keys: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"model_name_or_path": str(folder), "use_peft": True, "lora_r": 4} | keys
    )


def recipe(out: Path, folder: Path, rows: Path, **keys: Any) -> Recipe:
    common = {"data": ["rows"], "max_steps": 2, "save_steps": 1, "learning_rate": 1e-2}
    sft = common | {"type": "sft", "name": "sft", "rationale": "free", "per_device_train_batch_size": 2}
    grpo = common | {
        "type": "grpo",
        "name": "grpo",
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 4,
        "reward_funcs": [REWARD],
        "beta": 0.04,
    }
    tree = {
        "output_dir": str(out),
        "num_threads": 1,
        "model": config(folder, load_in_4bit=True).model_dump(),
        "data": {"rows": {"path": str(rows)}},
        "stages": [sft, grpo],
        "eval": {"data": []},
    }
    return Recipe.model_validate(tree | keys)


def test_without_the_package_it_says_how_to_install_it(
    native_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    cfg = config(native_folder("qwen2_5_vl"), load_in_4bit=True)
    said = "bitsandbytes is not installed; pip install 'bitsandbytes"
    with pytest.raises(ValueError, match=said):
        load_model(cfg, texts=lambda: [], seed=0)
    rows = write_pictures(tmp_path, 2)
    assert any(
        said in p for p in settings_problems(recipe(tmp_path / "run", native_folder("qwen2_5_vl"), rows))
    )
    assert quantization_problem(config(tmp_path)) is None and quantization(config(tmp_path)) == {}


def test_what_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="add use_peft: true"):
        config(tmp_path, load_in_4bit=True, use_peft=False)
    with pytest.raises(ValueError, match="load_in_4bit is for a pretrained model"):
        ModelConfig.model_validate(
            {"assemble": {"llm": {"model_type": "qwen3"}}, "use_peft": True, "load_in_4bit": True}
        )
    rows = write_pictures(tmp_path, 2)
    for keys in ({"deepspeed": "zero2"}, {"rollout": {"engine": "vllm"}}):
        problems = settings_problems(recipe(tmp_path / "run", tmp_path, rows, **keys))
        assert any("load_in_4bit" in p and "deepspeed" in p or "vllm" in p for p in problems)


def test_the_bytes_are_hand_computed(native_folder: Callable[[str], Path]) -> None:
    cfg = config(native_folder("qwen2_5_vl"))
    loaded = load_model(cfg, texts=lambda: [], seed=0)
    assert sum(m.weight.numel() for m in quantized_layers(loaded.model, loaded.family)) == 2 * LAYER
    spared = quantized_bytes(stand_in(loaded, cfg, 0, ()))
    # of each number's four bytes, half a one stays, and for 64 numbers one, and four for 64 x 256; one layer is whole
    assert spared == round(2 * LAYER * (4 - 0.5 - 1 / 64 - 4 / (64 * 256))) - 64 * 32 * 4


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs bitsandbytes")
def test_a_run_in_4_bits(native_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """SFT, then GRPO with a reference; what comes out is plain: the base's own weights and what was learned."""
    folder = native_folder("qwen2_5_vl")
    loaded = load_model(config(folder, load_in_4bit=True), texts=lambda: [], seed=0)
    four = [p for p in loaded.model.parameters() if p.dtype == torch.uint8]
    assert is_quantized(loaded.model) and sum(p.numel() for p in four) == LAYER  # two to a byte, two layers
    train(recipe(tmp_path / "run", folder, write_pictures(tmp_path, 4)))
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "run" / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not is_quantized(model)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "run" / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.endswith("proj.weight") or "visual" in name for name in changed)
    assert (
        max(float((before[n] - after[n]).abs().max()) for n in before) < 0.5
    )  # no rounding to 4 bits came with it
