"""Load any transformers multimodal model, or assemble a new one, ready to train."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

from mmreason.model.assemble import assemble, fetching
from mmreason.model.family import Family, bare, family_of
from mmreason.model.parts import add_lora, freeze
from mmreason.model.quantize import keep_as_trained, quantization
from mmreason.model.save import quiet
from mmreason.schema import ModelConfig

ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Loaded:
    """A model with its processor and what the other rooms must know of it.

    Example: `Loaded(model, processor, family)`; with `use_peft`, `model` is a `peft.PeftModel`.
    """

    model: PreTrainedModel | PeftModel
    processor: Any
    family: Family


def load_model(
    cfg: ModelConfig, *, texts: Callable[[], Iterable[str]], seed: int, checkpoint: Path | None = None
) -> Loaded:
    """The model of a recipe: loaded or assembled, frozen parts frozen, LoRA added, weights of `checkpoint` put in.

    Our own architectures load as installed classes with remote code off. The global RNG is left as it was.

    Args:
        texts: gives what a tokenizer is trained on; called only when one has to be trained.
        seed: of the weights that are not pretrained and of fresh adapters.
        checkpoint: a folder written by `save_model`: whole weights, or adapters for the model of `cfg`.

    Raises:
        ValueError: no multimodal architecture, no chat template, a missing folder, or parts that do not fit.
    """
    dtype = getattr(torch, cfg.torch_dtype)
    adapters = checkpoint is not None and (checkpoint / ADAPTER_FILE).is_file()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if checkpoint is not None and not adapters:
            model, processor = _load_native(cfg, str(checkpoint), dtype, remote=cfg.trust_remote_code)
        elif cfg.assemble is not None:
            model, processor = assemble(
                cfg.assemble,
                texts=texts,
                dtype=dtype,
                attention=cfg.attn_implementation,
                remote=cfg.trust_remote_code,
            )
        else:
            assert cfg.model_name_or_path is not None
            model, processor = _load_native(cfg, cfg.model_name_or_path, dtype, remote=cfg.trust_remote_code)
        if adapters:
            processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=cfg.trust_remote_code)
        _settle(model, processor, cfg)
        family = family_of(model, processor)
        _never_sample(model, family, processor)
        freeze(model, family, cfg)
        learner: PreTrainedModel | PeftModel = model
        if adapters:
            learner = PeftModel.from_pretrained(model, checkpoint, is_trainable=True)
        elif cfg.use_peft:
            learner = add_lora(model, family, cfg)
    return Loaded(learner, processor, family)


def _load_native(
    cfg: ModelConfig, path: str, dtype: torch.dtype, *, remote: bool
) -> tuple[PreTrainedModel, Any]:
    with fetching(path, "model_name_or_path"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=remote)
    known = [
        a for a in (AutoModelForImageTextToText, AutoModelForMultimodalLM) if type(config) in a._model_mapping
    ]
    remote_names = getattr(config, "auto_map", {}) if remote else {}
    known += [
        a for a in (AutoModelForImageTextToText, AutoModelForMultimodalLM) if a.__name__ in remote_names
    ]
    if not known:
        raise ValueError(
            f"{path}: {config.model_type!r} is no multimodal model to transformers; give one that "
            "AutoModelForImageTextToText or AutoModelForMultimodalLM loads, or put encoders in front of this LLM with "
            "model.assemble"
        )
    with quiet():
        model, info = known[0].from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=cfg.attn_implementation,
            trust_remote_code=remote,
            output_loading_info=True,
            **quantization(cfg),
        )
    keep_as_trained(model)
    if info["missing_keys"]:
        raise ValueError(
            f"{path} lacks the weights {sorted(info['missing_keys'])[:5]} of {type(model).__name__}"
        )
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=remote)


def _settle(model: PreTrainedModel, processor: Any, cfg: ModelConfig) -> None:
    """Chat template and pixel bounds of the recipe; a model that has no template at all is refused."""
    if cfg.chat_template is not None:
        if not Path(cfg.chat_template).is_file():
            raise ValueError(f"model.chat_template {cfg.chat_template!r}: no such file; give a jinja file")
        template = Path(cfg.chat_template).read_text(encoding="utf-8")
        processor.chat_template = processor.tokenizer.chat_template = template
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    if processor.chat_template is None:
        raise ValueError(
            f"{type(model).__name__}: the processor has no chat template, so messages cannot be rendered; give a jinja "
            "file as model.chat_template"
        )
    for key, value in (("fps", cfg.fps), ("max_frames", cfg.max_frames)):
        if value is not None and hasattr(processor, key):  # ours: it samples a video's frames by itself
            setattr(processor, key, value)
    size = getattr(getattr(processor, "image_processor", None), "size", None) or {}
    # processors of one fixed size have no such bounds and keep their size
    for bound, edge in ((cfg.min_pixels, "shortest_edge"), (cfg.max_pixels, "longest_edge")):
        if bound is not None and "longest_edge" in size and hasattr(processor.image_processor, "merge_size"):
            size[edge] = bound


def _never_sample(model: PreTrainedModel, family: Family, processor: Any) -> None:
    """Plain `generate` ends turns at the end-of-turn token and writes no placeholder, which has no features."""
    generation = model.generation_config
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or []), *family.placeholder_ids})
    if generation.eos_token_id is None:
        generation.eos_token_id = processor.tokenizer.eos_token_id
    if generation.pad_token_id is None:
        generation.pad_token_id = processor.tokenizer.pad_token_id


def gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Recompute activations of the inner models in the backward pass, or keep them."""
    plain = bare(model)
    if not on and not any(getattr(module, "gradient_checkpointing", False) for module in plain.modules()):
        return  # it is off already
    # transformers 5.2x calls it activation checkpointing and warns of the old name; 5.17 knows the old one alone
    name = "activation" if hasattr(plain, "activation_checkpointing_enable") else "gradient"
    if on:
        options = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(plain, f"{name}_checkpointing_enable")(**options)
    else:
        getattr(plain, f"{name}_checkpointing_disable")()
