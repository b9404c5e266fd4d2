"""Frames of a video file by PyAV, for a processor that is given a path."""

from __future__ import annotations

import math

import numpy as np
import torch

try:
    import av
except ImportError:  # decoded frames can be given all the same
    av = None


def read_frames(path: str, fps: float, max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [F, H, W, 3] and their moments float64 [F] in seconds.

    They lie evenly from the first frame to the last, as many as qwen-vl-utils takes: `fps` a second, an even number
    from 4 to `max_frames` where there are so many.

    Raises:
        ValueError: PyAV is missing, or the file has no frames.
    """
    if av is None:
        raise ValueError(f"got the video path {path!r}, but PyAV is missing: pip install av, or give frames")
    try:
        return _read(path, fps, max_frames)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: the video cannot be read ({error})") from error


def _read(path: str, fps: float, max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path}: got no video stream")
        stream = container.streams.video[0]
        zero, rate = (container.start_time or 0) * 1e-6, float(stream.average_rate or 0)
        pts = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None)
        times = np.array(pts) * float(stream.time_base) - zero
    if not len(times):
        raise ValueError(f"{path}: got a video stream without frames")
    wanted = _evenly(len(times), rate or 1.0, fps, max_frames)
    with av.open(path) as container:
        decoded = enumerate(container.decode(video=0))
        frames = [frame.to_ndarray(format="rgb24") for index, frame in decoded if index in wanted]
    if len(frames) != len(wanted):
        raise ValueError(f"{path}: {len(frames)} of {len(wanted)} frames decode; the stream is damaged")
    return np.stack(frames), times[wanted]


def _evenly(total: int, rate: float, fps: float, max_frames: int) -> list[int]:
    wanted = min(max(total / rate * fps, 4), max_frames // 2 * 2, total)
    count = max(math.floor(wanted / 2) * 2, 1)
    return torch.linspace(0, total - 1, count).round().long().tolist()
