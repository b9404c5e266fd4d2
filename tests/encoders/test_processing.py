"""The assembled processor: one placeholder token per feature, and refusals with the numbers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mmreason.model import load_model
from tests.tiny import AST, TEXTS, WHISPER, tiny_model_config


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_model(tiny_model_config(audio=[WHISPER, AST]), texts=lambda: TEXTS, seed=0).processor


def picture(shade: int = 0) -> Image.Image:
    return Image.new("RGB", (40, 24), (shade, 0, 0))


def test_every_medium_gets_its_tokens_and_types(processor: Any) -> None:
    text = "a<|image_pad|>b<|audio_pad|>c<|video_pad|>d<|image_pad|>"
    frames = np.zeros((2, 24, 40, 3), dtype=np.uint8)
    batch = processor(
        text=[text], images=[picture(), picture(255)], videos=[frames], audio=[np.zeros(8000, np.float32)]
    )
    audio = sum(spec["tokens"] for spec in processor.audio_encoders)
    expected = [0] + [1] * 16 + [0] + [3] * audio + [0] + [2] * 32 + [0] + [1] * 16
    assert batch["mm_token_type_ids"] == [expected]
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and batch["pixel_values_videos"].shape == (
        2,
        3,
        32,
        32,
    )
    assert batch["pixel_values"][0, 0].max() == -1 and batch["pixel_values"][1, 0].min() == 1
    assert batch["input_features_0"].shape == (1, 16, 100) and batch["input_features_1"].shape == (1, 98, 32)


def test_chat_template_takes_typed_parts_and_plain_strings(processor: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "How many?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "<answer>2</answer>"}]},
    ]
    assert processor.apply_chat_template(messages[1:2], add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert sorted(whole) == ["attention_mask", "input_ids", "mm_token_type_ids", "pixel_values"]
    assert int((whole["input_ids"] == processor.image_token_id).sum()) == 16
    text = processor.decode(whole["input_ids"][0]).replace("<|image_pad|>" * 16, "<|image_pad|>")
    assert text == processor.apply_chat_template(messages)
    with pytest.raises(Exception, match="unknown content part file"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "file"}]}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "a<|image_pad|>"}, r"1 <\|image_pad\|> placeholders in the text for 0 media"),
        ({"text": "a", "images": [picture()]}, r"0 <\|image_pad\|> placeholders in the text for 1 media"),
        ({"text": "<|audio_pad|>", "audio": [np.zeros(16001)]}, "at most 0.99 s: cut it"),
        ({"text": "<|audio_pad|>", "audio": [np.zeros(100)], "sampling_rate": 8000}, "wants 16000 Hz"),
        ({"text": "<|video_pad|>", "videos": ["a.mp4"]}, "a.mp4: the video cannot be read"),
        ({"text": "a", "max_lenght": 3}, r"unknown processor arguments \['max_lenght'\]"),
    ],
)
def test_refusals(processor: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_model_without_the_encoder_refuses_the_medium() -> None:
    deaf = load_model(tiny_model_config(), texts=lambda: TEXTS, seed=0).processor
    with pytest.raises(ValueError, match="no audio encoder; got 1 audio clips"):
        deaf(text="<|audio_pad|>", audio=[np.zeros(100)])
    blind = load_model(tiny_model_config(vision=None, audio=[WHISPER]), texts=lambda: TEXTS, seed=0)
    with pytest.raises(ValueError, match="no vision tower; got 1 pictures"):
        blind.processor(text="<|image_pad|>", images=[picture()])
    heard = blind.processor(text="<|audio_pad|>", audio=[np.zeros(100)], return_tensors="pt")
    assert blind.model(**heard).logits.shape[1] == 50


def test_saved_processor_gives_the_same_tensors(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    noise = np.random.default_rng(0).normal(size=16000 // 2).astype(np.float32)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(90)}, {"type": "audio", "audio": noise}],
        }
    ]
    one, two = (
        p.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        for p in (processor, again)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert again.chat_template == processor.chat_template
