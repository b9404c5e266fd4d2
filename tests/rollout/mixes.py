"""Tiny models of every family, prompts of every medium they take, and rows that end at ragged lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from mmreason.data.media import decode, limits_of
from mmreason.model.load import Loaded, load_model
from mmreason.render import Renderer
from mmreason.schema import ModelConfig
from mmreason.types import DecodedMedium, MediumRef, Message, Part, Rendered, Sample, Trajectory
from tests.data.clips import mp4, tone
from tests.tiny import AST, KINDS, SOUND_KINDS, TEXTS, WHISPER, tiny_model_config

HEARING = [
    {**WHISPER, "max_source_positions": 200, "audio_merge": 10},
    {**AST, "max_length": 400, "audio_merge": 5},
]
SENSES: dict[str, tuple[str, ...]] = {
    "assembled": ("", "i", "ii", "v", "a", "av", "iv"),
    **dict.fromkeys(KINDS, ("", "i", "ii", "v", "iv", "i")),
    "qwen2_audio": ("", "a", "aa", "a"),
    "qwen2_5_omni_thinker": ("", "i", "v", "a", "ii", "a"),
}
ALL = tuple(SENSES)
assert set(ALL) == {"assembled", *KINDS, *SOUND_KINDS}


def model_of(kind: str, native_folder: Callable[[str], Path]) -> Loaded:
    """The tiny model of a kind; the assembled one hears with two encoders."""
    if kind == "assembled":
        loaded = load_model(tiny_model_config(audio=HEARING), texts=lambda: TEXTS, seed=0)
    else:
        config = ModelConfig(model_name_or_path=str(native_folder(kind)))
        loaded = load_model(config, texts=lambda: [], seed=0)
    loaded.model.eval()
    return loaded


def prompts_of(loaded: Loaded, media: Sequence[str]) -> list[Rendered]:
    """One prompt for each entry: its letters are pictures, videos and sounds of different sizes; texts are ragged."""
    renderer = Renderer(loaded.processor)
    return [_prompt(loaded, renderer, i, kinds) for i, kinds in enumerate(media)]


def _prompt(loaded: Loaded, renderer: Renderer, number: int, kinds: str) -> Rendered:
    names = {"i": "image", "v": "video", "a": "audio"}
    refs: list[MediumRef] = []
    decoded: list[DecodedMedium] = []
    for place, letter in enumerate(kinds):
        size = number + 2 * place
        if letter == "i":
            refs.append(MediumRef("image", "a.png"))
            picture = Image.linear_gradient("L").resize((56 + 28 * (size % 3), 56)).convert("RGB")
            decoded.append(DecodedMedium("image", "a.png", image=picture.rotate(90 * size)))
        elif letter == "v":
            film = mp4(16 + 8 * (number % 2), sound=tone(2.0) if "a" in kinds else None)
            refs.append(MediumRef("video", "a.mp4", content=film))
            decoded.append(decode(refs[-1], limits_of(processor=loaded.processor)))
        else:
            refs.append(MediumRef("audio", "a.wav"))
            wave = tone(1.0 + 0.5 * (size % 3), hertz=200.0 * (1 + size))
            decoded.append(DecodedMedium("audio", "a.wav", waveform=wave, sampling_rate=16_000))
    media = [Part(names[letter], medium=i) for i, letter in enumerate(kinds)]  # type: ignore[arg-type]
    question = Part("text", text="how many " + "red " * (number * 3 % 7) + "things")
    sample = Sample(f"t:{number}", "t", (Message("user", (*media, question)),), tuple(refs))
    return renderer.prompt(sample, decoded)


def impatient(loaded: Loaded, ends: Sequence[int] = range(3, 250, 9)) -> Any:
    """A renderer to which the tokens `ends` end a completion as well, so that rows end at ragged lengths."""
    renderer = Renderer(loaded.processor)
    return SimpleNamespace(
        eos_ids=tuple({*renderer.eos_ids, *ends} - set(renderer.placeholder_ids)),
        pad_id=renderer.pad_id,
        placeholder_ids=renderer.placeholder_ids,
        decode=renderer.decode,
    )


def written(groups: Sequence[Sequence[Trajectory]]) -> list[list[int]]:
    """The ids of all rows, group after group."""
    return [t.ids.tolist() for group in groups for t in group]


def same_logprobs(one: Sequence[Sequence[Trajectory]], other: Sequence[Sequence[Trajectory]]) -> bool:
    """Whether the rows' log-probabilities agree to 2e-5."""
    pairs = [
        (a.logprobs, b.logprobs) for g, h in zip(one, other, strict=True) for a, b in zip(g, h, strict=True)
    ]
    assert all(a is not None and b is not None for a, b in pairs)
    return all(torch.allclose(a, b, atol=2e-5, rtol=0) for a, b in pairs)  # type: ignore[arg-type]
