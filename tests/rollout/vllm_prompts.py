"""A tiny native model that vLLM can serve, prompts with pictures for it, and the engine around an address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForMultimodalLM, WhisperFeatureExtractor

from mmreason.bench.work import Shape, checkpoint
from mmreason.model.load import load_model
from mmreason.model.save import save_model
from mmreason.render import Renderer
from mmreason.rollout.vllm_requests import Prompt
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import ModelConfig, RolloutConfig
from mmreason.types import DecodedMedium, MediaKind, MediumRef, Message, Part, Sample
from tests.tiny import tiny_hearing_processor, tiny_tokenizer

# heads of 32: vLLM's attention on a CPU takes no smaller ones
SHAPE = Shape(
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate=128,
    vocabulary=384,
    vision_depth=2,
    vision_hidden=64,
    image_tokens=64,
)
LOOK = "Look at every row. "


def tiny_served(folder: Path) -> Path:
    """A checkpoint of SHAPE."""
    return checkpoint(SHAPE, folder)


def tiny_hearing(folder: Path) -> Path:
    """A Qwen2-Audio: vLLM wants its window of 30 s."""
    tokenizer = tiny_tokenizer()
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.intermediate,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.kv_heads,
        "max_position_embeddings": 2048,
        "initializer_range": 0.08,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    audio = {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 16,
        "max_source_positions": 1500,
        "initializer_range": 0.08,
    }
    config = AutoConfig.for_model(
        "qwen2_audio",
        text_config=text,
        audio_config=audio,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMultimodalLM.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = tiny_hearing_processor("qwen2_audio", tokenizer)
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=30)
    return save_model(model, processor, folder)


def loaded(folder: Path, **keys: Any) -> Any:
    """The model and its processor."""
    return load_model(ModelConfig(model_name_or_path=str(folder), **keys), texts=lambda: [], seed=0)


def prompt(renderer: Renderer, number: int, pictures: int = 1, text: str = "How many squares?") -> Prompt:
    """A question on pictures of noise, each of another size."""
    rng = np.random.default_rng(number)
    media = []
    for i in range(pictures):
        noise = rng.integers(0, 256, (84 + 28 * i + 10 * number, 100, 3), dtype=np.uint8)
        media.append(DecodedMedium("image", f"{number}-{i}.png", image=Image.fromarray(noise)))
    return _asked(renderer, number, "image", media, text)


def heard(renderer: Renderer, number: int, sounds: int = 1, text: str = "How many beeps?") -> Prompt:
    """A question on sounds of noise, each of another length."""
    rng = np.random.default_rng(number)
    media = []
    for i in range(sounds):
        noise = rng.standard_normal(8000 * (1 + number + i)).astype(np.float32) / 10
        media.append(DecodedMedium("audio", f"{number}-{i}.wav", waveform=noise, sampling_rate=16000))
    return _asked(renderer, number, "audio", media, text)


def _asked(
    renderer: Renderer, number: int, kind: MediaKind, media: Sequence[DecodedMedium], text: str
) -> Prompt:
    parts = (*(Part(kind, medium=i) for i in range(len(media))), Part("text", text=text))
    refs = tuple(MediumRef(kind, medium.name) for medium in media)
    sample = Sample(f"rows:{number}", "rows", (Message("user", parts),), refs)
    return Prompt(sample, media, renderer.prompt(sample, media))


def engine(base_url: str, folder: Path, model: Any, run: str = "run", **keys: Any) -> VLLMRollout:
    """The engine, impatient unless told otherwise."""
    config = RolloutConfig(engine="vllm", base_url=base_url, **{"max_wait": 0.0, "timeout": 60.0, **keys})
    return VLLMRollout(config, folder, model, run)
