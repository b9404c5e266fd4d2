"""The assembled processor: one placeholder token per feature, and refusals with the numbers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from mmreason.data.media import decode, limits_of
from mmreason.model import load_model
from mmreason.types import MediumRef
from tests.data.clips import mp4, tone
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


# --- a video and its sound

BOTH = "<|video_pad|><|audio_pad|>"


@pytest.fixture(scope="module")
def merging() -> Any:
    audio = [{**WHISPER, "audio_merge": 10}, {**AST, "audio_merge": 2}]
    return load_model(tiny_model_config(audio=audio), texts=lambda: TEXTS, seed=0).processor


def test_a_frame_and_what_is_heard_until_the_next_one(merging: Any) -> None:
    frames, wave = np.zeros((3, 24, 40, 3), np.uint8), np.zeros(15900, np.float32)
    batch = merging(text="a" + BOTH + "b", videos=[frames], audio=[wave], video_times=[[0.0, 0.45, 0.8]])
    # Whisper hears at .1 .3 .5 .7 .9 s, AST (features 5 to 7) at .166 .498 .829 s
    v, first, second, third = [2] * 16, [3] * 3, [3] * 3, [3] * 2
    assert batch["mm_token_type_ids"] == [[0, *v, *first, *v, *second, *v, *third, 0]]
    assert batch["audio_order"].tolist() == [[0, 1, 5, 2, 3, 6, 4, 7]]
    assert batch["video_times"].tolist() == pytest.approx([0.0, 0.45, 0.8])


def test_a_video_and_a_sound_that_stand_apart_are_simple_runs(merging: Any) -> None:
    frames, wave = np.zeros((2, 24, 40, 3), np.uint8), np.zeros(15900, np.float32)
    batch = merging(text="<|video_pad|>a<|audio_pad|>", videos=frames, audio=[wave])
    assert batch["mm_token_type_ids"] == [[*[2] * 32, 0, *[3] * 8]]
    assert batch["audio_order"].tolist() == [list(range(8))]
    assert batch["video_times"].tolist() == [0.0, 0.5]  # of frames that bring no times


def test_several_clips_keep_their_order(merging: Any) -> None:
    frames, wave = np.zeros((2, 24, 40, 3), np.uint8), np.zeros(15900, np.float32)
    text = ["<|audio_pad|>" + BOTH, BOTH]
    times = [[0.0, 0.6], [0.0, 0.2]]
    batch = merging(text=text, videos=[[frames], [frames]], audio=[wave] * 3, video_times=times, padding=True)
    assert batch["audio_order"].tolist() == [
        list(range(8)),
        [0, 1, 2, 5, 6, 3, 4, 7],
        [0, 5, 1, 2, 3, 4, 6, 7],
    ]


@pytest.mark.parametrize(
    ("second", "wanted"),
    [
        ({"type": "audio"}, "<|vision_start|><|video_pad|><|audio_pad|><|vision_end|>?"),
        (
            {"type": "audio", "apart": True},
            "<|vision_start|><|video_pad|><|vision_end|><|audio_start|><|audio_pad|><|audio_end|>?",
        ),
    ],
)
def test_the_template_joins_a_video_and_the_sound_behind_it(
    merging: Any, second: dict[str, Any], wanted: str
) -> None:
    parts = [{"type": "video"}, second, {"type": "text", "text": "?"}]
    text = merging.apply_chat_template([{"role": "user", "content": parts}])
    assert text == f"<|im_start|>user\n{wanted}<|im_end|>\n"
    turned = merging.apply_chat_template([{"role": "user", "content": [second, parts[0]]}])
    assert "<|audio_end|><|vision_start|><|video_pad|><|vision_end|>" in turned


def test_a_path_is_sampled_as_the_frames_that_mmreason_decodes(merging: Any, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4(33, sound=tone()))
    medium = decode(MediumRef("video", "a.mp4", root=str(tmp_path)), limits_of(processor=merging))
    assert medium.timestamps is not None
    one = merging(text="<|video_pad|>", videos=[str(tmp_path / "a.mp4")])
    two = merging(text="<|video_pad|>", videos=[medium.frames], video_times=[medium.timestamps])
    assert len(one["video_times"]) == 8
    assert all(torch.equal(one[k], two[k]) for k in ("pixel_values_videos", "video_times"))
    assert one["input_ids"] == two["input_ids"]


def test_an_odd_frame_stands_twice_where_frames_merge() -> None:
    processor = load_model(tiny_model_config(temporal_merge=2), texts=lambda: TEXTS, seed=0).processor
    frames = np.stack([np.full((24, 40, 3), 60 * i, np.uint8) for i in range(3)])
    batch = processor(text="<|video_pad|>", videos=[frames], video_times=[[0.0, 0.5, 1.0]])
    assert batch["mm_token_type_ids"] == [[2] * 32] and processor.feature_count("video", 3) == 32
    assert torch.equal(batch["pixel_values_videos"][2], batch["pixel_values_videos"][3])
    assert batch["video_times"].tolist() == [0.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="2 video_times for 3 frames of video 0"):
        processor(text="<|video_pad|>", videos=[frames], video_times=[[0.0, 0.5]])
