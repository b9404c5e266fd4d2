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
        qwen = _is_qwen(processor)
        out["images"] = [_qwen_image(processor.image_processor, m) if qwen else m.image for m in images]
        if qwen:
            out["images_kwargs"] = {"do_resize": False}
    if videos and hasattr(processor, "video_processor"):
        out["videos"] = [_qwen_video(processor, m) if _is_qwen(processor) else m.frames for m in videos]
        metadata = [_metadata(m) for m in videos]
        out["videos_kwargs"] = {"do_sample_frames": False, "video_metadata": metadata}
        out["videos_kwargs"] |= {"do_resize": False} if _is_qwen(processor) else {}
        if "Omni" in type(processor).__name__:
            out["videos_kwargs"]["fps"] = _one_rate(metadata)
    elif videos:
        out |= {"videos": [m.frames for m in videos], "video_times": [m.timestamps for m in videos]}
    if audio:
        rates = sorted({m.sampling_rate or 0 for m in audio})
        if len(rates) > 1:
            raise ValueError(f"audio at {rates} Hz in one row; resample them to one rate")
        for m in audio:
            assert m.waveform is not None
            within_window(len(m.waveform) / max(rates[0], 1), processor)
        out |= {"audio": [m.waveform for m in audio], "sampling_rate": rates[0]}
    return out


def audio_window(processor: Any) -> float | None:
    """Seconds of sound that every audio encoder of a model can hear at once; None for a model that hears nothing.

    Whisper's feature extractor, which the native models use, would cut a longer clip without a word.
    """
    own = getattr(processor, "audio_encoders", None)
    if own:
        return min(float(spec["seconds"]) for spec in own)
    extractor = getattr(processor, "feature_extractor", None)
    samples = getattr(extractor, "n_samples", None)
    return None if samples is None else samples / extractor.sampling_rate  # type: ignore[union-attr]


def within_window(seconds: float, processor: Any) -> None:
    """Refuse a sound that is longer than the model's window.

    Raises:
        ValueError: it is.
    """
    window = audio_window(processor)
    if window is not None and seconds > window + 1e-6:
        raise ValueError(f"got {seconds:.2f} s of sound; this model hears at most {window:.2f} s: cut it")


def _is_qwen(processor: Any) -> bool:
    return "Qwen" in type(getattr(processor, "image_processor", None)).__name__


def _qwen_image(image_processor: Any, medium: DecodedMedium) -> Image.Image:
    # imported here: it brings torchvision's video readers, which other models need not wait for
    from qwen_vl_utils import fetch_image

    size = image_processor.size
    bounds = {
        "min_pixels": medium.min_pixels or size["shortest_edge"],
        "max_pixels": medium.max_pixels or size["longest_edge"],
    }
    return fetch_image({"image": medium.image, **bounds}, image_patch_size=image_processor.patch_size)


def _qwen_video(processor: Any, medium: DecodedMedium) -> torch.Tensor:
    """Frames float32 [F, 3, H, W], resized as qwen-vl-utils' `fetch_video` resizes those that it reads by itself.

    That function takes a path, or pictures, whose size it rounds to larger squares; so its rule is spelt out here.
    The recipe's bounds are per frame; a lower `max_pixels` than its least size lowers that too.
    """
    # imported here: see _qwen_image
    from qwen_vl_utils import vision_process as utils
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    assert medium.frames is not None
    count, height, width, _ = medium.frames.shape
    factor = processor.image_processor.patch_size * utils.SPATIAL_MERGE_SIZE
    least = medium.min_pixels or utils.VIDEO_MIN_TOKEN_NUM * factor**2
    least = min(least, medium.max_pixels or least)
    whole = utils.MODEL_SEQ_LEN * factor**2 * 0.9 / count * utils.FRAME_FACTOR
    most = max(min(utils.VIDEO_MAX_TOKEN_NUM * factor**2, whole), int(least * 1.05))
    size = utils.smart_resize(
        height, width, factor=factor, min_pixels=least, max_pixels=min(medium.max_pixels or most, most)
    )
    frames = torch.from_numpy(medium.frames).permute(0, 3, 1, 2)
    return resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float()


def _metadata(medium: DecodedMedium) -> dict[str, Any]:
    """transformers' VideoMetadata of frames that are already chosen: which of the file they are, where that is known.

    Otherwise their times stand as indices at their own rate.
    """
    assert medium.frames is not None and medium.timestamps is not None
    if medium.frame_indices is not None and medium.video_fps and medium.total_frames:
        total, fps = medium.total_frames, medium.video_fps
        indices = medium.frame_indices.tolist()
        return {"total_num_frames": total, "fps": fps, "frames_indices": indices, "duration": total / fps}
    times = medium.timestamps
    step = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    fps = 1.0 / step if step > 0 else 1.0
    indices = [round(float(t) * fps) for t in times]
    total = indices[-1] + 1
    return {"total_num_frames": total, "fps": fps, "frames_indices": indices, "duration": total / fps}


def _one_rate(metadata: Sequence[Mapping[str, Any]]) -> float:
    """Frames kept of a second, which Qwen2.5-Omni's processor wants once for all videos of a row."""
    rates = {len(m["frames_indices"]) / m["total_num_frames"] * m["fps"] for m in metadata}
    if len(rates) > 1:
        raise ValueError(f"videos with {sorted(rates)} frames a second in one row; this model takes one rate")
    return rates.pop()


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
    heard = tensors.get("feature_attention_mask")
    if kind == "audio" and heard is not None:  # Qwen2-Audio: two frames make a state, two states a feature
        return int((((heard.sum(dim=-1) - 1) // 2 + 1 - 2) // 2 + 1).sum())
    count = getattr(processor, "feature_count", None)  # our own processors tell
    if count is None:
        return None
    return sum(count(kind, 1 if m.frames is None else len(m.frames)) for m in media)
