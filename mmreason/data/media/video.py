"""Videos: frames by decord, by PyAV where decord is missing or gives up; bounded before anything is decoded."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import torch

from mmreason.data.media.container import opened, survey
from mmreason.data.media.limits import MediaError, MediaLimits, reading

ALLOWED = "whole videos that FFmpeg plays"
FRAME_FACTOR, MIN_FRAMES = 2, 4  # of qwen-vl-utils


@dataclass(frozen=True)
class Plan:
    """Which frames of a video are wanted. Example: 8 of 32 frames, [0, 4, 9, 13, 18, 22, 27, 31]."""

    indices: np.ndarray  # int64 [F], in order of presentation
    times: np.ndarray  # float64 [F], seconds
    width: int
    height: int
    fps: float  # of the file
    total: int  # frames of the file
    plain: bool  # decord may be trusted with it


def decode_video(data: bytes, name: str, limits: MediaLimits) -> tuple[np.ndarray, Plan]:
    """Frames uint8 [F, H, W, 3] and what they are.

    Raises:
        MediaError: no video, torn or damaged, too long, or too many pixels.
    """
    plan = plan_video(data, name, limits)
    with reading(name, "video", ALLOWED):
        frames = by_decord(data, plan)
        if frames is None:
            frames = by_pyav(data, name, plan)
    if frames.shape != (len(plan.indices), plan.height, plan.width, 3):
        raise MediaError(
            f"{name}: got frames of {list(frames.shape)}; the header promises {plan.height} x {plan.width}: write the "
            "video anew"
        )
    return frames, plan


def plan_video(data: bytes, name: str, limits: MediaLimits) -> Plan:
    """What a video holds and which frames are wanted; every packet is read, none decoded."""
    with reading(name, "video", ALLOWED), opened(data, name, "video") as (container, stream):
        track = survey(container, stream, name, limits)
        total, span = len(track.times), track.end - float(track.times[0])
        if total < FRAME_FACTOR:
            raise MediaError(
                f"{name}: got {total} frame; a video has {FRAME_FACTOR} or more (for qwen-vl-utils too): give a "
                "picture as an image, or remove its row"
            )
        if span <= 0:
            raise MediaError(f"{name}: got {total} frames in {span:.2f} s; write the video anew")
        fps = float(stream.average_rate or 0) or total / span
        width, height = stream.codec_context.width, stream.codec_context.height
    indices = sample_indices(total, fps, limits)
    pixels = len(indices) * width * height
    if pixels > limits.max_video_pixels or not pixels:
        raise MediaError(
            f"{name}: got {len(indices)} frames x {width} x {height} = {pixels} pixels; allowed are 1 to "
            f"{limits.max_video_pixels} (max_video_pixels): shrink it, lower fps or max_frames, or raise the bound"
        )
    return Plan(indices, track.times[indices], width, height, fps, total, track.plain)


def sample_indices(total: int, fps: float, limits: MediaLimits) -> np.ndarray:
    """Which of `total` frames at `fps` are kept: evenly from first to last, as many as qwen-vl-utils would keep.

    That is its `smart_nframes` (an even number, at least 4 where there are so many); where one frame is wanted
    (`max_frames: 1`), which it refuses, the first alone.

    Example: 32 frames at 8 a second with 2 a second wanted are 8: [0, 4, 9, 13, 18, 22, 27, 31].
    """
    most = limits.max_frames // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(total / fps * limits.fps, MIN_FRAMES), most, total)
    count = max(math.floor(wanted / FRAME_FACTOR) * FRAME_FACTOR, 1)
    return torch.linspace(0, total - 1, count).round().long().numpy()


@lru_cache(maxsize=1)
def decord_module() -> Any | None:
    """decord, or None where it is not installed (it has no wheels for every platform)."""
    if importlib.util.find_spec("decord") is None:
        return None
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


def by_decord(data: bytes, plan: Plan) -> np.ndarray | None:
    """The frames by decord; None where it is missing, gives up, or counts other frames than the packets tell.

    Files whose packets are not plain never reach it: some of them end the process.
    """
    decord = decord_module()
    if decord is None or not plan.plain:
        return None
    try:
        reader = decord.VideoReader(BytesIO(data), num_threads=1)
        if len(reader) != plan.total:
            return None
        return reader.get_batch(plan.indices.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError):
        return None


def by_pyav(data: bytes, name: str, plan: Plan) -> np.ndarray:
    """The frames by PyAV, decoded in order up to the last that is wanted."""
    wanted = set(plan.indices.tolist())
    kept: list[np.ndarray] = []
    with opened(data, name, "video") as (container, stream):
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if frame.width * frame.height != plan.width * plan.height:
                raise MediaError(
                    f"{name}: frame {index} is {frame.width} x {frame.height}; the first is {plan.width} x "
                    f"{plan.height}: write the video anew in one size"
                )
            if index in wanted:
                kept.append(frame.to_ndarray(format="rgb24"))
            if index == plan.indices[-1]:
                return _stack(kept)
    raise MediaError(
        f"{name}: {len(kept)} of {len(wanted)} frames decode, the stream is damaged: repair it or remove its row"
    )


def _stack(frames: Sequence[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(frames))
