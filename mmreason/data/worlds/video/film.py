"""MP4 files by PyAV: small H.264 pictures, with an AAC sound track if there is one. Equal input gives equal bytes.

The encoder's delay is written into the file's edit list, so that a decoder's first sample is the wave's first.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

VIDEO_OPTIONS = {"preset": "ultrafast", "crf": "14", "threads": "1"}
AUDIO_OPTIONS = {"aac_coder": "fast"}  # a third of the time of the default, and here closer to the wave
AUDIO_BITS = 48_000  # a second


def mp4_bytes(frames: np.ndarray, fps: int, wave: np.ndarray | None = None, rate: int = 16_000) -> bytes:
    """A clip as a file.

    Args:
        frames: uint8 RGB [frames, H, W, 3], H and W even; `fps` of them a second.
        wave: mono sound on the same clock, float32 [samples] in -1..1, `rate` samples a second.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=VIDEO_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        track = None
        if wave is not None:
            track = container.add_stream("aac", rate=rate, layout="mono", options=AUDIO_OPTIONS)
            track.bit_rate = AUDIO_BITS
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if wave is not None and track is not None:
            samples = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
            container.mux(track.encode(samples))
            container.mux(track.encode())
    return buffer.getvalue()
