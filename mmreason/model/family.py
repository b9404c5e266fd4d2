"""What the other rooms must know of a model: its parts, its placeholder tokens, the tensors its forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mmreason.model.packed import segment_mask, segment_positions
from mmreason.types import MicroBatch

PARTS = ("vision", "audio", "projector", "llm")
BOUNDARIES = ("<|vision_start|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>", "<|vision_pad|>")
# module names of native transformers models, by part; everything else is the LLM
NATIVE_PARTS = {
    "vision": (
        "model.vision_tower",
        "model.vision_model",
        "model.visual",
        "visual",
        "vision_tower",
        "vision_model",
    ),
    "audio": ("model.audio_tower", "audio_tower", "model.audio_encoder"),
    "projector": (
        "model.multi_modal_projector",
        "multi_modal_projector",
        "model.connector",
        "model.embed_vision",
        "model.embed_audio",
        "model.aligner",
        # Qwen2.5-Omni's thinker
        "model.visual.merger",
        "visual.merger",
        "model.audio_tower.proj",
        "audio_tower.proj",
    ),
    "llm": ("model.language_model", "language_model", "model.text_model", "lm_head"),
}


@dataclass(frozen=True)
class Family:
    """How to feed and to take apart one kind of model.

    Example: Qwen2.5-VL is `Family("qwen_vl", media=("pixel_values", "image_grid_thw", ...), placeholders={"image":
    151655, "video": 151656}, placeholder_ids=(151652, 151653, 151655, 151656), parts={"vision": ("model.visual",),
    "projector": ("model.visual.merger",), "llm": ("model.language_model", "lm_head"), "audio": ()}, ...)`.
    """

    name: str  # "assembled", "qwen_vl" or "native"
    media: tuple[str, ...]  # media arguments of forward
    placeholders: dict[str, int]  # kind -> the token that its features replace
    placeholder_ids: tuple[int, ...]  # every id that must never be sampled: placeholders and media boundaries
    parts: dict[str, tuple[str, ...]]  # part -> module name prefixes; the longest that fits decides
    token_types: bool  # forward takes mm_token_type_ids

    def part_of(self, parameter: str) -> str:
        """The part (one of PARTS) a parameter name of the bare model belongs to; unmatched names are the LLM's."""
        fits = [
            (len(prefix), part)
            for part, prefixes in self.parts.items()
            for prefix in prefixes
            if parameter == prefix or parameter.startswith(prefix + ".")
        ]
        return max(fits)[1] if fits else "llm"


def bare(model: Any) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def out_of_training(model: Any) -> Iterator[None]:
    """The model in evaluation as long as this is open, and as it was afterwards, whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def family_of(learner: nn.Module, processor: Any) -> Family:
    """The family of a model, decided by the attributes of its config, never by its name.

    Raises:
        ValueError: the config names no placeholder token at all.
    """
    model: Any = bare(learner)
    config = model.config
    tokens = {kind: getattr(config, f"{kind}_token_id", None) for kind in ("image", "video", "audio")}
    placeholders = {kind: token for kind, token in tokens.items() if token is not None}
    if not placeholders:
        raise ValueError(
            f"{type(config).__name__} has no image_token_id, video_token_id or audio_token_id; mmreason trains models "
            "whose features replace placeholder tokens: assemble one from this LLM with model.assemble"
        )
    arguments = set(inspect.signature(model.forward).parameters)
    if hasattr(config, "audio_configs") and hasattr(model, "media_names"):
        name, media, parts = "assembled", tuple(model.media_names), _assembled_parts()
    elif _is_qwen_vl(config):
        name, parts = "qwen_vl", _qwen_parts()
        media = (
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "second_per_grid_ts",
        )
    else:
        name, parts = "native", {part: NATIVE_PARTS[part] for part in PARTS}
        media = (
            "pixel_values",
            "image_sizes",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "video_second_per_grid",
            "input_features",
            "feature_attention_mask",
        )
    media = media if name == "assembled" else tuple(m for m in media if m in arguments)
    banned = set(placeholders.values()) | _boundary_ids(processor, config)
    return Family(name, media, placeholders, tuple(sorted(banned)), parts, "mm_token_type_ids" in arguments)


def _is_qwen_vl(config: Any) -> bool:
    """Qwen-VL's layout; Qwen2.5-Omni's thinker, which hears too, has another one."""
    sees = hasattr(config, "vision_start_token_id") and hasattr(config.vision_config, "spatial_merge_size")
    return sees and not hasattr(config, "audio_config")


def _boundary_ids(processor: Any, config: Any) -> set[int]:
    vocabulary = processor.tokenizer.get_vocab()
    named = {
        getattr(config, f"{kind}_{edge}_token_id", None)
        for kind in ("vision", "audio")
        for edge in ("start", "end")
    }
    known: set[int] = {vocabulary[t] for t in BOUNDARIES if t in vocabulary}
    return known | {i for i in named if i is not None}


def _assembled_parts() -> dict[str, tuple[str, ...]]:
    return {
        "vision": ("vision_tower",),
        "audio": ("audio_towers",),
        "projector": ("vision_projector", "video_projector", "audio_projectors", "time_embedding"),
        "llm": ("language_model",),
    }


def _qwen_parts() -> dict[str, tuple[str, ...]]:
    return {
        "vision": ("model.visual",),
        "audio": (),
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
        "llm": ("model.language_model", "lm_head"),
    }


def forward_inputs(family: Family, batch: MicroBatch, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Keyword arguments of `model.forward` for one micro-batch, on `device`. Position ids are the model's own affair.

    Raises:
        ValueError: the batch carries a media tensor that this family's forward does not take.
    """
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
    if batch.segments is not None:
        inputs |= {
            "attention_mask": segment_mask(batch.segments),
            "position_ids": segment_positions(batch.segments),
        }
    inputs |= media_inputs(family, batch.media, batch.token_types)
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def media_inputs(
    family: Family, media: Mapping[str, torch.Tensor], token_types: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What forward and generate take beside ids and mask: the media, and token types [B, L] where they are asked for.

    Raises:
        ValueError: a media tensor that this family's forward does not take.
    """
    unknown = sorted(set(media) - set(family.media))
    if unknown:
        raise ValueError(
            f"media {unknown} are unknown to a {family.name} model; it takes {list(family.media)}"
        )
    return {**media, **({"mm_token_type_ids": token_types} if family.token_types else {})}
