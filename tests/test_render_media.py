"""Films and sound through the renderer: one run where they share a clock; Qwen's frames are qwen-vl-utils' own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen_vl_utils import process_vision_info
from safetensors.torch import load_file
from transformers import AutoProcessor

from mmreason.data.media import MediaLimits, decode, limits_of
from mmreason.model import Loaded, load_model, save_model
from mmreason.model.save import probe_difference, write_probe
from mmreason.render import Renderer, RenderError
from mmreason.types import MediumRef, Message, Part, Rendered, Sample
from tests.data.clips import mp4, tone, wav
from tests.tiny import AST, KINDS, TEXTS, WHISPER, tiny_model_config

HEARING = [
    {**WHISPER, "max_source_positions": 200, "audio_merge": 10},
    {**AST, "max_length": 400, "audio_merge": 5},
]

BARE = """{%- for message in messages -%}<|im_start|>{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- else -%}{{ '<|' + part['type'] + '_pad|>' }}{%- endif -%}
{%- endfor -%}<|im_end|>{%- endfor -%}"""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    found = load_model(tiny_model_config(audio=HEARING), texts=lambda: TEXTS, seed=0)
    found.model.eval()
    torch.nn.init.normal_(found.model.time_embedding.weight)  # the moments count
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "a.mp4").write_bytes(mp4(sound=tone()))
    (root / "b.mp4").write_bytes(mp4(40, sound=tone(2.0)))
    (root / "a.wav").write_bytes(wav(tone(3.0, hertz=300.0)))
    return root


def sample(folder: Path, *parts: str) -> Sample:
    """`video:a.mp4` and `audio:a.wav` are media, everything else is text."""
    refs: list[MediumRef] = []
    content: list[Part] = []
    for part in parts:
        kind, _, name = part.partition(":")
        if kind in ("video", "audio"):
            refs.append(MediumRef(kind, name, root=str(folder)))  # type: ignore[arg-type]
            content.append(Part(kind, medium=len(refs) - 1))  # type: ignore[arg-type]
        else:
            content.append(Part("text", text=part))
    return Sample("rows:1", "rows", (Message("user", tuple(content)),), tuple(refs))


def rendered(processor: Any, row: Sample) -> Rendered:
    limits = limits_of(processor=processor)
    return Renderer(processor).prompt(row, [decode(ref, limits) for ref in row.media])


def runs(row: Rendered) -> list[tuple[int, int]]:
    """(token type, length) of every run."""
    types = row.token_types.tolist()
    starts = [i for i, t in enumerate(types) if i == 0 or types[i - 1] != t]
    return [(types[a], b - a) for a, b in zip(starts, [*starts[1:], len(types)], strict=True)]


def test_a_film_with_its_own_sound_is_one_run(loaded: Loaded, folder: Path) -> None:
    row = rendered(loaded.processor, sample(folder, "video:a.mp4", "audio:a.mp4", "What?"))
    found = runs(row)
    # frames at 0 .5 1.125 1.625 2.25 2.75 3.375 3.875 s; Whisper hears every .2 s from .1 on, AST every .803 from .4015
    heard = [2 + 1, 4 + 0, 2 + 1, 3 + 1, 3 + 0, 3 + 1, 2 + 1, 1 + 0]
    assert found[0][0] == 0 and found[-1][0] == 0
    assert found[1:-1] == [run for n in heard for run in ((2, 16), (3, n))]
    order = row.media["audio_order"][0].tolist()
    assert order[:8] == [0, 1, 20, 2, 3, 4, 5, 6] and sorted(order) == list(range(25))
    with torch.no_grad():
        whole = loaded.model(input_ids=row.ids[None], **row.media).logits
        still = loaded.model(input_ids=row.ids[None], **{**row.media, "audio_order": torch.arange(25)[None]})
    assert not torch.allclose(whole, still.logits, atol=1e-4)


@pytest.mark.parametrize(
    "parts",
    [
        ("video:a.mp4", "audio:a.wav", "What?"),  # another file
        ("video:a.mp4", "and", "audio:a.mp4", "What?"),  # not directly behind
        ("audio:a.mp4", "video:a.mp4", "What?"),  # before
    ],
)
def test_other_sound_is_a_run_of_its_own(loaded: Loaded, folder: Path, parts: tuple[str, ...]) -> None:
    row = rendered(loaded.processor, sample(folder, *parts))
    assert sorted(run for run in runs(row) if run[0]) == [(2, 128), (3, 25)]
    assert row.media["audio_order"].tolist() == [list(range(25))]


def test_a_template_that_would_join_them_is_refused(loaded: Loaded, folder: Path) -> None:
    """Placeholders that touch are one clock to the processor: a.wav would pass for the film's own sound."""
    processor = copy.copy(loaded.processor)
    processor.chat_template = BARE
    with pytest.raises(
        RenderError, match=r"rows:1: a.wav is not the sound of the video before it, .* put words"
    ):
        rendered(processor, sample(folder, "video:a.mp4", "audio:a.mp4", "or", "video:b.mp4", "audio:a.wav"))
    for parts in (("video:a.mp4", "audio:a.mp4"), ("video:a.mp4", "and", "audio:a.wav"), ("audio:a.wav",)):
        rendered(processor, sample(folder, *parts, "What?"))


def test_several_films_of_a_row_keep_their_own_clocks(loaded: Loaded, folder: Path) -> None:
    parts = ("video:a.mp4", "audio:a.mp4", "or", "video:b.mp4", "audio:b.mp4", "or", "audio:a.wav")
    together = rendered(loaded.processor, sample(folder, *parts))
    alone = [rendered(loaded.processor, sample(folder, *p)) for p in (parts[:2], parts[3:5], parts[6:])]
    for name in ("pixel_values_videos", "video_times", "input_features_0", "audio_order"):
        assert torch.equal(together.media[name], torch.cat([r.media[name] for r in alone if name in r.media]))


def test_a_clip_that_is_too_long_is_named(loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(wav(tone(5.0)))
    with pytest.raises(RenderError, match=r"rows:1: long.wav: .*at most 4.00 s: cut it"):
        rendered(loaded.processor, sample(tmp_path, "audio:long.wav"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("fps", "frames"), [(2.0, 16), (4.0, 6)])
def test_qwen_gets_the_frames_of_qwen_vl_utils(
    kind: str, fps: float, frames: int, native_folder: Callable[[str], Path], folder: Path
) -> None:
    processor = AutoProcessor.from_pretrained(native_folder(kind))
    patch = processor.image_processor.patch_size
    bounds = {"min_pixels": (2 * patch) ** 2, "max_pixels": (6 * patch) ** 2}
    limits = MediaLimits(fps=fps, max_frames=frames, **bounds)
    row = sample(folder, "video:b.mp4", "What?")
    ours = Renderer(processor).prompt(row, [decode(ref, limits) for ref in row.media])
    part = {"type": "video", "video": str(folder / "b.mp4"), "fps": fps, "max_frames": frames, **bounds}
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    _, videos, options = process_vision_info(
        turns, return_video_kwargs=True, return_video_metadata=True, image_patch_size=patch
    )
    films, metadata = zip(*videos, strict=True)
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    theirs = processor(
        text=[text], videos=list(films), video_metadata=list(metadata), do_resize=False, return_tensors="pt", **options
    )  # fmt: skip
    assert torch.equal(ours.ids, theirs["input_ids"][0])
    assert ours.media.keys() <= theirs.keys() and "pixel_values_videos" in ours.media
    for name, tensor in ours.media.items():
        assert torch.equal(tensor, torch.as_tensor(theirs[name])), name


# --- the saved model without mmreason

PLAIN = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, job, out = sys.argv[1:4]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
assert not any(name.startswith("mmreason") for name in sys.modules)
results = {}
for name, parts in json.load(open(job)).items():
    for part in parts:
        if part["type"] == "audio":
            part["audio"] = np.load(part["audio"])
        elif part["type"] == "video" and part["video"].endswith(".npy"):
            part["video"] = np.load(part["video"])
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True)
    with torch.no_grad():
        results[name + ".logits"] = model(**inputs).logits
    results |= {name + "." + key: tensor.contiguous() for key, tensor in inputs.items()}
from safetensors.torch import save_file
save_file(results, out)
"""


@pytest.mark.slow
def test_plain_transformers_gives_the_same_of_every_modality(
    loaded: Loaded, folder: Path, tmp_path: Path
) -> None:
    saved = save_model(loaded.model, loaded.processor, tmp_path / "model")
    rows = {
        "video": sample(folder, "video:a.mp4", "What?"),
        "audio": sample(folder, "audio:a.wav", "What?"),
        "av": sample(folder, "video:a.mp4", "audio:a.mp4", "What?"),
    }
    ours = {name: rendered(loaded.processor, row) for name, row in rows.items()}
    write_probe(loaded.model, loaded.family, ours, saved)
    assert probe_difference(saved) == 0.0

    def shown(ref: MediumRef) -> dict[str, str]:
        if ref.kind == "video":
            return {"type": "video", "video": str(folder / ref.path)}
        path = tmp_path / f"{ref.path}.npy"
        wave = decode(ref, limits_of(processor=loaded.processor)).waveform
        assert wave is not None
        np.save(path, wave)
        return {"type": "audio", "audio": str(path)}

    words = [{"type": "text", "text": "What?"}]
    job = {name: [*(shown(ref) for ref in row.media), *words] for name, row in rows.items()}
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-I", "-c", PLAIN, str(saved), "job.json", "out.safetensors"]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    theirs, probe = load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "probe.safetensors")
    for name, row in ours.items():
        assert torch.equal(theirs[f"{name}.input_ids"][0], row.ids)
        for key, tensor in row.media.items():
            assert torch.equal(theirs[f"{name}.{key}"], tensor), (name, key)
        assert torch.equal(theirs[f"{name}.logits"], probe[f"{name}.logits"])
