"""Native models that hear through the same run: one SFT step and one GRPO step on WAV files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from mmreason.render import Renderer, RenderError
from mmreason.schema import Recipe
from mmreason.train.run import train
from mmreason.types import DecodedMedium, MediumRef, Message, Part, Sample
from tests.data.clips import mp4, tone, wav
from tests.tiny import SOUND_KINDS
from tests.train import small
from tests.train.test_native import moved, recipe


def write_sounds(folder: Path, *, sees: bool) -> Path:
    """Six rows: sounds of several lengths and rates, two in one row, none, a film's track (with the film if `sees`)."""
    folder.mkdir(parents=True)
    for i, rate in enumerate((16_000, 8_000, 44_100, 16_000)):
        (folder / f"{i}.wav").write_bytes(wav(tone(1.0 + 0.5 * i, rate, 200.0 * (i + 1)), rate))
    (folder / "film.mp4").write_bytes(mp4(8, sound=tone(1.0)))
    sounds = [["0.wav"], ["1.wav", "2.wav"], [], ["3.wav"], ["film.mp4"], ["2.wav"]]
    rows = [
        {
            "id": f"row-{i}",
            "problem": "<video>" * (sees and i == 4)
            + "<audio>" * len(files)
            + "High or low? "
            + "Listen. " * i,
            "audios": files,
            "videos": files if sees and i == 4 else [],
            "solution": ("high", "low")[i % 2],
            "options": ["high", "low"],
            "rationale": {"free": "I hear it"},
        }
        for i, files in enumerate(sounds)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_one_step_of_each_stage(
    kind: str, native_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "qwen2_audio":  # once with the probe
        small.without_probe(monkeypatch)
    folder, out = native_folder(kind), tmp_path / "run"
    rows = write_sounds(tmp_path / "rows", sees=kind != "qwen2_audio")
    parsed: Recipe = recipe(out, rows, model_name_or_path=str(folder), max_pixels=56 * 56)
    train(parsed)
    sft, grpo = small.metrics(out)
    assert math.isfinite(sft["loss"]) and math.isfinite(grpo["loss"]) and grpo["grad_norm"] > 0
    assert not (out / "quarantine.jsonl").exists()
    before, after = small.weights(folder), small.weights(out / "stages" / "sft")
    for part in ("audio_tower.layers", "audio_tower.conv1", "layers.0.mlp"):
        named = {name: tensor for name, tensor in before.items() if part in name}
        assert named and moved(named, {name: after[name] for name in named}, bool) > 1e-3
    assert (out / "probe.safetensors").exists() == (kind == "qwen2_audio")


@pytest.mark.parametrize("kind", SOUND_KINDS)
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.97])
def test_placeholders_are_as_many_as_features(
    kind: str, seconds: float, native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = AutoProcessor.from_pretrained(native_folder(kind))
    clip = DecodedMedium("audio", "a.wav", waveform=tone(seconds), sampling_rate=16_000)
    asked = Message("user", (Part("audio", medium=0), Part("text", text="High?")))
    sample = Sample("rows:1", "rows", (asked,), (MediumRef("audio", "a.wav"),))
    rendered = Renderer(processor).prompt(sample, [clip])
    frames = int(rendered.media["feature_attention_mask"].sum())
    assert frames == math.ceil(seconds * 100)
    assert int((rendered.token_types == 3).sum()) == ((frames - 1) // 2 + 1 - 2) // 2 + 1

    def one_frame_short(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        made = type(processor).__call__(processor, *args, **kwargs)
        made["feature_attention_mask"][:, frames - 8 :] = 0
        return made

    broken = Renderer(processor)
    monkeypatch.setattr(broken, "processor", one_frame_short)
    with pytest.raises(
        RenderError, match=r"rows:1: a.wav: \d+ audio placeholder tokens for \d+ audio features"
    ):
        broken.prompt(sample, [clip])


@pytest.mark.parametrize("kind", SOUND_KINDS)
def test_a_clip_longer_than_the_window_is_refused_and_not_cut(
    kind: str, native_folder: Callable[[str], Path]
) -> None:
    processor = AutoProcessor.from_pretrained(native_folder(kind))
    clip = DecodedMedium("audio", "a.wav", waveform=tone(4.1), sampling_rate=16_000)
    asked = Message("user", (Part("audio", medium=0), Part("text", text="High?")))
    sample = Sample("rows:1", "rows", (asked,), (MediumRef("audio", "a.wav"),))
    with pytest.raises(RenderError, match=r"rows:1: a.wav: got 4.10 s of sound; .* at most 4.00 s: cut it"):
        Renderer(processor).prompt(sample, [clip])
