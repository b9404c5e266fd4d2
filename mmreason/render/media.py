"""Decoded media as arguments of a processor's call, and how many features they will make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from mmreason.types import DecodedMedium, MediaKind


def media_arguments(processor: Any, media: Sequence[DecodedMedium]) -> dict[str, Any]:
    """Decoded media -> arguments of the processor's call.

    Qwen-VL pictures are resized by qwen-vl-utils, as these models' users do; the processor then keeps that size.
    """
    images = [m for m in media if m.kind == "image"]
    videos = [m for m in media if m.kind == "video"]
    audio = [m for m in media if m.kind == "audio"]
    out: dict[str, Any] = {}
    if images:
        qwen = "Qwen" in type(getattr(processor, "image_processor", None)).__name__
        out["images"] = [_qwen_image(processor.image_processor, m) if qwen else m.image for m in images]
        if qwen:
            out["images_kwargs"] = {"do_resize": False}
    if videos:
        out["videos"] = [m.frames for m in videos]
        if hasattr(processor, "video_processor"):
            out["videos_kwargs"] = {
                "do_sample_frames": False,
                "video_metadata": [_metadata(m) for m in videos],
            }
    if audio:
        rates = sorted({m.sampling_rate or 0 for m in audio})
        if len(rates) > 1:
            raise ValueError(f"audio at {rates} Hz in one row; resample them to one rate")
        out |= {"audio": [m.waveform for m in audio], "sampling_rate": rates[0]}
    return out


def sampling_rate_of(processor: Any) -> int:
    """Hz that a processor wants its sound at; 16000 where it takes none."""
    extractor = getattr(processor, "feature_extractor", processor)
    return int(getattr(extractor, "sampling_rate", None) or 16_000)


def _qwen_image(image_processor: Any, medium: DecodedMedium) -> Image.Image:
    # imported here: it brings torchvision's video readers, which other models need not wait for
    from qwen_vl_utils import fetch_image

    size = image_processor.size
    bounds = {
        "min_pixels": medium.min_pixels or size["shortest_edge"],
        "max_pixels": medium.max_pixels or size["longest_edge"],
    }
    return fetch_image({"image": medium.image, **bounds}, image_patch_size=image_processor.patch_size)


def _metadata(medium: DecodedMedium) -> dict[str, Any]:
    """transformers' VideoMetadata of frames that are already chosen: their times as indices at their own rate."""
    assert medium.frames is not None and medium.timestamps is not None
    times = medium.timestamps
    step = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    fps = 1.0 / step if step > 0 else 1.0
    indices = [round(float(t) * fps) for t in times]
    total = indices[-1] + 1
    return {"total_num_frames": total, "fps": fps, "frames_indices": indices, "duration": total / fps}


def feature_count(
    processor: Any, kind: MediaKind, media: Sequence[DecodedMedium], tensors: Mapping[str, torch.Tensor]
) -> int | None:
    """How many features the model will make of these media; None where the processor does not tell."""
    if not media:
        return 0
    grid = tensors.get(f"{kind}_grid_thw")
    if grid is not None:
        part = processor.video_processor if kind == "video" else processor.image_processor
        return int(grid.prod(dim=-1).sum()) // part.merge_size**2
    per_picture = getattr(processor, "image_tokens", None)
    if per_picture and kind == "image":
        return per_picture * len(media)
    if per_picture and kind == "video":
        return per_picture * sum(len(m.frames) for m in media if m.frames is not None)
    return None
