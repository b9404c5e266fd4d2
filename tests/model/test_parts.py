"""Freezing, parameter groups and LoRA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from mmreason.model import (
    Loaded,
    add_lora,
    load_model,
    merge_lora,
    parameter_groups,
    read_weights,
    save_model,
)
from mmreason.model.parts import plain_name
from mmreason.schema import ModelConfig
from tests.tiny import AST, KINDS, TEXTS, tiny_model_config


def load(config: ModelConfig) -> Loaded:
    return load_model(config, texts=lambda: TEXTS, seed=0)


def assembled(**keys: Any) -> tuple[Loaded, ModelConfig]:
    config = tiny_model_config(audio=[AST]).model_copy(update=keys)
    return load(config), config


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", [*KINDS, "assembled", "lora"])
def test_groups_hold_every_trainable_parameter_once(kind: str, native_folder: Callable[[str], Path]) -> None:
    config = (
        tiny_model_config(audio=[AST])
        if kind in ("assembled", "lora")
        else ModelConfig(model_name_or_path=str(native_folder(kind)))
    )
    config = config.model_copy(update={"use_peft": kind == "lora", "lora_r": 2})
    loaded = load(config)
    groups = parameter_groups(loaded.model, loaded.family, config, 1e-3, 0.1)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in trainable(loaded.model).values()}
    assert len({group["name"] for group in groups}) == len(groups)


def test_rates_per_part_and_decay_only_on_matrices() -> None:
    rates = {"vision_learning_rate": 1e-5, "audio_learning_rate": 2e-5, "projector_learning_rate": 3e-5}
    loaded, config = assembled(**rates)
    groups = parameter_groups(loaded.model, loaded.family, config, 1e-3, 0.1)
    of = {id(p): group for group in groups for p in group["params"]}
    model = loaded.model
    cases = [
        (model.vision_tower.encoder.layers[0].mlp.fc1.weight, 1e-5, 0.1),
        (model.vision_tower.encoder.layers[0].mlp.fc1.bias, 1e-5, 0.0),
        (model.vision_tower.embeddings.position_embedding.weight, 1e-5, 0.0),
        (model.audio_towers[0].embeddings.cls_token, 2e-5, 0.0),
        (model.audio_towers[0].embeddings.position_embeddings, 2e-5, 0.0),
        (model.vision_projector.linear_in.weight, 3e-5, 0.1),
        (model.audio_projectors[0].norm.weight, 3e-5, 0.0),
        (model.language_model.model.layers[0].self_attn.q_proj.weight, 1e-3, 0.1),
        (model.language_model.model.embed_tokens.weight, 1e-3, 0.0),
    ]
    for parameter, lr, decay in cases:
        assert (of[id(parameter)]["lr"], of[id(parameter)]["weight_decay"]) == (lr, decay)


def test_a_rate_of_zero_is_a_rate() -> None:
    loaded, config = assembled(vision_learning_rate=0.0)
    groups = parameter_groups(loaded.model, loaded.family, config, 1e-3, 0.1)
    assert {g["lr"] for g in groups if g["name"].startswith("vision")} == {0.0}


def test_freezing_holds_a_part_still() -> None:
    loaded, _ = assembled(freeze_vision_tower=True, freeze_llm=True)
    open_parts = {loaded.family.part_of(name) for name in trainable(loaded.model)}
    assert open_parts == {"audio", "projector"}
    everything = {
        f"freeze_{part}": True for part in ("vision_tower", "audio_tower", "multi_modal_projector", "llm")
    }
    with pytest.raises(ValueError, match="every part of the model is frozen"):
        assembled(**everything)


def disturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def logits(model: Any) -> torch.Tensor:
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = torch.tensor([[50, *[plain.config.image_token_id] * 16, 51, 52]])
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


def test_lora_trains_adapters_of_open_parts_and_fresh_projectors_whole() -> None:
    loaded, config = assembled(use_peft=True, lora_r=2, freeze_vision_tower=True)
    names = {plain_name(name) for name in trainable(loaded.model)}
    assert {loaded.family.part_of(n) for n in names} == {"audio", "projector", "llm"}
    assert all("lora_" in n for n in names if loaded.family.part_of(n) != "projector")
    assert {n for n in names if "projector" in n} == {
        f"{p}.{n}"
        for p in ("vision_projector", "audio_projectors.0")
        for n in (
            "norm.weight",
            "norm.bias",
            *(f"linear_{x}.{w}" for x in ("in", "out") for w in ("weight", "bias")),
        )
    }
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        add_lora(loaded.model, loaded.family, config)
    with pytest.raises(ValueError, match=r"fit no linear layer .* layers end in .*'q_proj'"):
        assembled(use_peft=True, lora_target_modules=["query_projection"])


def test_merged_lora_equals_the_adapter_model_and_saves_as_a_plain_one(tmp_path: Path) -> None:
    loaded, config = assembled(use_peft=True, lora_r=2)
    untouched = logits(loaded.model)
    disturb(loaded.model)
    adapted = logits(loaded.model)
    assert (adapted - untouched).abs().max() > 0.01
    assert torch.allclose(logits(merge_lora(loaded.model)), adapted, atol=1e-5)
    assert torch.equal(logits(loaded.model), adapted)  # merging left the learner alone
    folder = save_model(loaded.model, loaded.processor, tmp_path / "merged")
    plain = load(ModelConfig(model_name_or_path=str(folder))).model
    assert not isinstance(plain, PeftModel) and torch.allclose(logits(plain), adapted, atol=1e-5)
    saved = save_model(loaded.model, loaded.processor, tmp_path / "adapters", merge=False)
    assert not (saved / "model.safetensors").exists()
    again = load_model(config, texts=lambda: TEXTS, seed=0, checkpoint=saved)
    assert torch.equal(logits(again.model), adapted)
    assert trainable(again.model).keys() == trainable(loaded.model).keys()
    disturb(loaded.model)
    read_weights(loaded.model, saved)
    assert torch.equal(logits(loaded.model), adapted)


def test_lora_on_a_native_model(native_folder: Callable[[str], Path]) -> None:
    config = ModelConfig(
        model_name_or_path=str(native_folder("qwen3_vl")), use_peft=True, lora_target_modules=["q_proj"]
    )
    names = trainable(load(config).model)
    assert names and all(".q_proj.lora_" in name for name in names)
