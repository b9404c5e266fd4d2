"""Which models can share prompts, in rollouts and in training: asked of the models, built without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

from mmreason.model.save import quiet
from mmreason.model.shared_fit import Unfit, unshareable, untrainable

# what the table shows; any other model_type of transformers can be asked for by name
FAMILIES = (
    "qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe qwen3_5 qwen2_audio qwen2_5_omni_thinker llava llava_onevision internvl "
    "gemma3 paligemma mistral3 smolvlm idefics3 glm4v lfm2_vl voxtral"
).split()
LLMS = "llama mistral qwen2 qwen3 qwen3_moe gemma2 gemma3_text gpt_oss qwen3_next olmo_hybrid".split()


@dataclass(frozen=True)
class Capability:
    """One line of the table; None where nothing stands against sharing.

    Example: `Capability("qwen2_vl", "model", "M-RoPE", ("full_attention",), None, None)`.
    """

    name: str  # transformers' model_type
    kind: str  # "model", or "llm": the language model of an assembled one
    positions: str  # "M-RoPE" or "1-D"
    layers: tuple[str, ...]  # the decoder's layer types, each once
    rollout: str | None  # why rollouts prefill each row by itself
    training: str | None  # why training computes each row by itself


def capabilities(names: Sequence[str] = ()) -> list[Capability]:
    """A line for each of `names` (default: FAMILIES, then LLMS), from its default config with few layers.

    Raises:
        ValueError: a name that is no model_type with a multimodal or causal language model in transformers.
    """
    return [_capability(name) for name in (names or [*FAMILIES, *LLMS])]


def _capability(name: str) -> Capability:
    if name not in CONFIG_MAPPING:
        raise ValueError(f"--models: {name!r} is no model_type of transformers; one is e.g. qwen2_5_vl")
    config = CONFIG_MAPPING[name]()
    autos = (AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoModelForCausalLM)
    auto = next((a for a in autos if type(config) in a._model_mapping), None)
    if auto is None:
        raise ValueError(f"--models: transformers has no multimodal or causal language model for {name!r}")
    _few_layers(config.get_text_config(decoder=True))
    with torch.device("meta"), quiet():
        model = auto.from_config(config)
    kinds = _layers(model)
    return Capability(
        name=name,
        kind="llm" if auto is AutoModelForCausalLM else "model",
        positions="M-RoPE" if any(hasattr(m, "get_rope_index") for m in model.modules()) else "1-D",
        layers=kinds,
        rollout=_told(unshareable(model)),
        training=_told(untrainable(model)),
    )


def _told(reason: Unfit | None) -> str | None:
    return None if reason is None else f"{reason.name}: {reason.why}"


def _few_layers(config: PreTrainedConfig) -> None:
    """Keep as many layers as it takes to have one of each type; layers that are numbered in the config stay."""
    if getattr(config, "cross_attention_layers", None):
        return
    kinds = getattr(config, "layer_types", None)
    count = 1 if not kinds else max(kinds.index(kind) for kind in set(kinds)) + 1
    if kinds:
        config.layer_types = list(kinds[:count])
    config.num_hidden_layers = count


def _layers(model: Any) -> tuple[str, ...]:
    kinds = getattr(model.get_decoder().config, "layer_types", None) or ["full_attention"]
    return tuple(sorted(set(kinds)))
