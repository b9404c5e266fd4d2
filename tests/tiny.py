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
    Qwen2_5OmniProcessor,
    Qwen2AudioProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

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
SOUND_KINDS = ("qwen2_audio", "qwen2_5_omni_thinker")  # native models that hear
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
    """A tiny random checkpoint of one of KINDS or SOUND_KINDS in `folder`, with processor, tokenizer and template."""
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
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    if kind == "qwen2_audio":
        text["model_type"] = "qwen2"
    else:  # three axes (time, height, width) share head_dim / 2 frequencies
        text["rope_scaling"] = {"rope_type": "default", "type": "mrope", "mrope_section": [4, 2, 2]}
    config = AutoConfig.for_model(kind, text_config=text, **_senses(kind, ids), tie_word_embeddings=False)
    auto = AutoModelForMultimodalLM if kind == "qwen2_audio" else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = (
        tiny_hearing_processor(kind, tokenizer) if kind in SOUND_KINDS else _processor(kind, tokenizer)
    )
    return save_model(model, processor, folder)


def _senses(kind: str, ids: dict[str, int]) -> dict[str, Any]:
    """Configs of the encoders, and the tokens that stand for their features."""
    senses: dict[str, Any] = {}
    if kind in SOUND_KINDS:
        senses["audio_config"] = {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "max_source_positions": 200,  # 4 s
            "initializer_range": 0.08,
        }
        senses["audio_token_index"] = ids["<|audio_pad|>"]
    if kind == "qwen2_5_omni_thinker":
        senses["audio_config"] |= {"output_dim": 32, "n_window": 50}
        senses |= {f"audio_{edge}_token_id": ids[f"<|audio_{edge}|>"] for edge in ("start", "end")}
        senses |= {f"{medium}_token_index": ids[f"<|{medium}_pad|>"] for medium in ("image", "video")}
        senses |= {f"vision_{edge}_token_id": ids[f"<|vision_{edge}|>"] for edge in ("start", "end")}
        senses["vision_config"] = _vision("qwen2_5_vl")
    elif kind in KINDS:
        senses |= {f"{medium}_token_id": ids[f"<|{medium}_pad|>"] for medium in ("image", "video")}
        senses |= {f"vision_{edge}_token_id": ids[f"<|vision_{edge}|>"] for edge in ("start", "end")}
        senses["vision_config"] = _vision(kind)
    return senses


def tiny_hearing_processor(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The processor of one of SOUND_KINDS; its window is 4 s."""
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=4)
    # these models take a video and its sound as two runs
    template = tokenizer.chat_template
    for join in ("and not loop.nextitem['apart']", "and not part['apart']"):
        assert join in template
        template = template.replace(join, "and false")
    edges = {"audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
    if kind == "qwen2_audio":
        return Qwen2AudioProcessor(
            feature_extractor=extractor,
            tokenizer=tokenizer,
            chat_template=template,
            audio_token="<|audio_pad|>",
            **edges,
        )
    edges |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
    media = {f"{medium}_token": f"<|{medium}_pad|>" for medium in ("image", "video", "audio")}
    tokenizer._set_model_specific_special_tokens(special_tokens=edges | media)
    size = {"shortest_edge": 28**2, "longest_edge": (16 * 14) ** 2}
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, size=size),
        video_processor=Qwen2VLVideoProcessor(patch_size=14, size=size),
        feature_extractor=extractor,
        tokenizer=tokenizer,
        chat_template=template,
    )


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
