"""Tiny random models, saved with processor and chat template, for every test that needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmreason.model import load_model, save_model
from mmreason.model.tokenizer import train_tokenizer
from mmreason.schema import AssembleConfig, ModelConfig

TEXTS = [
    "How many red squares are in the picture? Count the red squares and answer with the number.",
    "<think>I see two red squares and one blue circle.</think><answer>3</answer>",
    "<think><planning>look at every row</planning><caption>a grid</caption><reasoning>2 + 1 = 3</reasoning>"
    "<summary>three</summary></think><answer>red, blue</answer>",
    "Which colours are there? red, green, blue, yellow, orange, purple; left, right, above, below",
]
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
WHISPER = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "max_source_positions": 50,
}
AST = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_mel_bins": 32,
    "max_length": 98,
    "patch_size": 16,
    "time_stride": 16,
    "frequency_stride": 16,
}


def tiny_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens with special tokens, tags and a ChatML template."""
    return train_tokenizer(TEXTS, vocab_size)


def tiny_model_config(**assemble: Any) -> ModelConfig:
    """A recipe's model section for a tiny assembled model (SigLIP of 32 pixels, 16 tokens a picture; Qwen3)."""
    parts: dict[str, Any] = {
        "vision": SIGLIP,
        "llm": QWEN3,
        "image_size": 32,
        "tokenizer": {"vocab_size": 384},
    }
    return ModelConfig(assemble=AssembleConfig(**{**parts, **assemble}))


def tiny_assembled(folder: Path, *, seed: int = 0, **assemble: Any) -> Path:
    """A tiny assembled checkpoint in `folder`, as `save_model` writes it."""
    loaded = load_model(tiny_model_config(**assemble), texts=lambda: TEXTS, seed=seed)
    return save_model(loaded.model, loaded.processor, folder)


def tiny_native(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """A tiny random Qwen-VL checkpoint in `folder`, processor, tokenizer and chat template with it."""
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        # three axes (time, height, width) share head_dim / 2 frequencies
        "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [4, 2, 2]},
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    config = AutoConfig.for_model(
        kind,
        text_config=text,
        vision_config=_vision(kind),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return save_model(model, _processor(kind, tokenizer), folder)


def _vision(kind: str) -> dict[str, Any]:
    vision = {
        "depth": 2,
        "num_heads": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.08,
    }
    if kind == "qwen2_vl":
        return {**vision, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 14}
    vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32}
    if kind == "qwen2_5_vl":
        return {**vision, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    return {**vision, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}


def _processor(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    three = kind == "qwen3_vl"
    patch = 16 if three else 14
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (16 * patch) ** 2}
    processor_class = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
    }[kind]
    video_class = Qwen3VLVideoProcessor if three else Qwen2VLVideoProcessor
    return processor_class(
        image_processor=Qwen2VLImageProcessor(patch_size=patch, size=size),
        tokenizer=tokenizer,
        video_processor=video_class(patch_size=patch, size=size),
        chat_template=tokenizer.chat_template,
    )
