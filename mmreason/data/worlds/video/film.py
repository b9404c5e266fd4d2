"""MP4 files by PyAV: small H.264 pictures, with a sound track if there is one. Equal input gives equal bytes."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

VIDEO_OPTIONS = {"preset": "ultrafast", "crf": "14", "threads": "1"}


def mp4_bytes(frames: np.ndarray, fps: int) -> bytes:
    """A clip [frames, H, W, 3] uint8 RGB, H and W even, at `fps` frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=VIDEO_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.time_base = Fraction(1, fps)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
