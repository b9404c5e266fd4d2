"""QLoRA (Dettmers et al. 2023): the LLM's linear layers in 4-bit NormalFloat, adapters of full precision beside."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from mmreason.model.family import NATIVE_PARTS, Family, bare
from mmreason.schema import ModelConfig

# bytes of a number: half, an 8-bit scale for 64 of them, and a float32 one for 256 of those scales
BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def quantization_problem(cfg: ModelConfig) -> str | None:
    """Why `load_in_4bit` cannot be had here; None where it can, or is not asked for."""
    if cfg.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        return (
            "model.load_in_4bit: the package bitsandbytes is not installed; pip install 'bitsandbytes>=0.46.1', or "
            "remove the key"
        )
    return None


def quantization(cfg: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is told: nothing, or to read the LLM's layers in 4 bits, as QLoRA's paper has it.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    problem = quantization_problem(cfg)
    if problem is not None:
        raise ValueError(problem)
    if not cfg.load_in_4bit:
        return {}
    others = sorted({name for part, names in NATIVE_PARTS.items() if part != "llm" for name in names})
    told = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, cfg.torch_dtype),
        llm_int8_skip_modules=[*others, "lm_head"],
    )
    return {"quantization_config": told}


def keep_as_trained(model: nn.Module) -> None:
    """On some CPUs bitsandbytes packs a layer anew when it is first evaluated, in a form that it cannot train on."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantized(model: nn.Module) -> bool:
    """Whether layers of the model are in 4 bits."""
    return bool(getattr(bare(model), "is_loaded_in_4bit", False))


def quantized_layers(model: Any, family: Family) -> list[nn.Linear]:
    """The layers of a whole model that `load_in_4bit` would read in 4 bits."""
    plain = bare(model)
    head = plain.get_output_embeddings()
    return [
        module
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and "lora_" not in name
        and family.part_of(name) == "llm"
    ]
