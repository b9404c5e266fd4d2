"""Native models that see films through the same run: an SFT and a GRPO step on MP4 files, with Qwen's frames."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from qwen_vl_utils import process_vision_info

from mmreason.train.prepare import prepare
from mmreason.train.run import train
from tests.data.clips import mp4
from tests.tiny import KINDS
from tests.train import small
from tests.train.test_native import llm, moved, projector, recipe, vision

PIXELS = {"fps": 2.0, "max_frames": 8, "min_pixels": 28**2, "max_pixels": 84**2}


def write_films(folder: Path) -> Path:
    """Six rows: films of several lengths, rates and sizes, one with a sound track, two in one row, and none."""
    folder.mkdir(parents=True)
    for i, (frames, fps, size) in enumerate(((16, 8, 64), (25, 25, 96), (40, 10, 64), (6, 2, 128))):
        (folder / f"{i}.mp4").write_bytes(mp4(frames, fps=fps, size=size))
    films = [["0.mp4"], ["1.mp4", "0.mp4"], [], ["2.mp4"], ["3.mp4"], ["1.mp4"]]
    rows = [
        {
            "id": f"row-{i}",
            "problem": "<video>" * len(files) + "Left or right? " + "Look. " * i,
            "videos": files,
            "solution": ("left", "right")[i % 2],
            "options": ["left", "right"],
            "rationale": {"free": "I see it move"},
        }
        for i, files in enumerate(films)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_each_stage(
    kind: str, native_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.without_probe(monkeypatch)
    folder, out = native_folder(kind), tmp_path / "run"
    train(recipe(out, write_films(tmp_path / "rows"), model_name_or_path=str(folder), **PIXELS))
    sft, grpo = small.metrics(out)
    assert sft["rows"] == 6 and grpo["rows"] == 12
    assert math.isfinite(sft["loss"]) and math.isfinite(grpo["loss"]) and grpo["grad_norm"] > 0
    ends = {name: small.weights(out / "stages" / name) for name in ("sft", "grpo")}
    for part in (vision, projector, llm):
        assert moved(small.weights(folder), ends["sft"], part) > 1e-3
        assert moved(ends["sft"], ends["grpo"], part) > 1e-3
    assert small.evaluation(out)["grpo"]["by_modality"].keys() == {"video", "text"}
    assert not (out / "quarantine.jsonl").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_shows_the_frames_of_qwen_vl_utils(
    kind: str, native_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """What the stages of a run are fed, row for row, equals what the model's users would feed it."""
    rows = write_films(tmp_path / "rows")
    context = prepare(
        recipe(tmp_path / "run", rows, model_name_or_path=str(native_folder(kind)), **PIXELS),
        tmp_path / "run",
        None,
    )
    processor = context.processor
    for sample in context.sources["rows"]:
        ours = context.feed.prompt(sample)
        assert ours is not None
        if not sample.media:
            continue
        parts = [{"type": "video", "video": str(rows.parent / ref.path), **PIXELS} for ref in sample.media]
        _, videos, options = process_vision_info(
            [{"role": "user", "content": parts}],
            return_video_kwargs=True,
            return_video_metadata=True,
            image_patch_size=processor.image_processor.patch_size,
        )
        films, metadata = zip(*videos, strict=True)
        theirs = processor.video_processor(
            videos=list(films), video_metadata=list(metadata), do_resize=False, return_tensors="pt", **options
        )
        for name in ("pixel_values_videos", "video_grid_thw"):
            assert torch.equal(ours.media[name], theirs[name]), (sample.id, name)
