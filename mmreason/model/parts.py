"""What of a model learns, and how fast: freezing, parameter groups per part, LoRA."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from mmreason.model.family import Family, bare
from mmreason.schema import ModelConfig


def frozen_parts(cfg: ModelConfig) -> set[str]:
    """The parts whose weights the recipe holds still."""
    flags = {
        "vision": cfg.freeze_vision_tower,
        "audio": cfg.freeze_audio_tower,
        "projector": cfg.freeze_multi_modal_projector,
        "llm": cfg.freeze_llm,
    }
    return {part for part, frozen in flags.items() if frozen}


def freeze(model: nn.Module, family: Family, cfg: ModelConfig, more: Collection[str] = ()) -> None:
    """Set requires_grad of every parameter by its part; `more` parts are frozen beside those of the recipe's model.

    Under PEFT only adapters and whole-trained copies learn, and only those of parts that are not frozen.

    Raises:
        ValueError: nothing would be left to train.
    """
    frozen = frozen_parts(cfg) | set(more)
    learning = 0
    for name, parameter in model.named_parameters():
        adapts = not isinstance(model, PeftModel) or "lora_" in name or ".modules_to_save." in name
        adapts = adapts and parameter.is_floating_point()  # not those in 4 bits
        parameter.requires_grad_(adapts and family.part_of(plain_name(name)) not in frozen)
        learning += parameter.requires_grad
    if not learning:
        raise ValueError(f"every part of the model is frozen ({sorted(frozen)}); leave at least one to train")


def add_lora(model: PreTrainedModel, family: Family, cfg: ModelConfig) -> PeftModel:
    """Low-rank adapters (Hu et al. 2021) on the linear layers of every part that is not frozen.

    `lora_target_modules` other than "all-linear" are name endings. The projectors of an assembled model are fresh and
    a low-rank change of random weights would not do: they are trained whole.

    Raises:
        ValueError: no layer fits, or the model has adapters already.
    """
    if isinstance(model, PeftModel):
        raise ValueError("the model has LoRA adapters already; merge them first")
    frozen = frozen_parts(cfg)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    open_layers = [name for name in linear if family.part_of(name) not in frozen]
    whole: list[str] = []
    if family.name == "assembled" and "projector" not in frozen:
        singles = ("vision_projector", "video_projector", "time_embedding")
        whole = [name for name in singles if getattr(model, name, None) is not None]
        whole += [f"audio_projectors.{i}" for i in range(len(model.audio_projectors))]
    head = model.get_output_embeddings()
    targets = [n for n in open_layers if family.part_of(n) != "projector" or not whole]
    targets = [n for n in targets if model.get_submodule(n) is not head]  # as PEFT's all-linear does
    if cfg.lora_target_modules != "all-linear":
        endings = tuple(cfg.lora_target_modules)
        targets = [n for n in targets if any(n == e or n.endswith("." + e) for e in endings)]
    if not targets:
        raise ValueError(
            f"lora_target_modules {cfg.lora_target_modules!r} fit no linear layer of the parts that are not frozen; "
            f"layers end in {sorted({n.rpartition('.')[2] for n in open_layers})}"
        )
    lora = LoraConfig(
        r=cfg.lora_r,
        lora_alpha=cfg.lora_alpha,
        lora_dropout=cfg.lora_dropout,
        target_modules=targets,
        modules_to_save=whole or None,
        task_type=None,
    )
    return get_peft_model(model, lora)


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """The plain model whose weights hold the adapters. The model given stays as it is; the copy costs its memory."""
    return copy.deepcopy(model).merge_and_unload() if isinstance(model, PeftModel) else bare(model)


def plain_name(name: str) -> str:
    """A parameter name under PEFT -> the name it has in the bare model, adapters named after their layer."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def parameter_groups(
    model: nn.Module, family: Family, cfg: ModelConfig, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups `{"name", "params", "lr", "weight_decay"}`, one per part and decay, empty ones left out.

    Every trainable parameter is in exactly one group. Norms, biases and embeddings have no weight decay.
    """
    rates = {
        "vision": cfg.vision_learning_rate,
        "audio": cfg.audio_learning_rate,
        "projector": cfg.projector_learning_rate,
    }
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():  # a tied weight comes once
        if not parameter.requires_grad:
            continue
        part = family.part_of(plain_name(name))
        decays = parameter.ndim > 1 and id(parameter) not in embeddings and not _is_position(name)
        key = part if decays else f"{part}/no_decay"
        rate = rates.get(part)
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": lr if rate is None else rate,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _is_position(name: str) -> bool:
    """Learned position tables and class tokens that are bare parameters (ViT, DINOv2, AST)."""
    last = name.rpartition(".")[2]
    return last.endswith(("embedding", "embeddings", "_token", "embed"))
