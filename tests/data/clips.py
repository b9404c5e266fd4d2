"""Small films and sounds made in process: MP4 and MP3 by PyAV, WAV by hand."""

from __future__ import annotations

import struct
import tempfile
from io import BytesIO
from pathlib import Path

import av
import numpy as np


def frame(i: int, size: int = 64) -> np.ndarray:
    """A bar that stands further right in every frame, on its own shade: no two frames are alike."""
    picture = np.full((size, size, 3), 20 + 4 * i, dtype=np.uint8)
    picture[:, (2 * i) % size : (2 * i) % size + 8] = [230, 40, 10]
    return picture


def tone(seconds: float = 4.0, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    """A quiet sine, float32 [S]."""
    return (0.25 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def mp4(
    frames: int = 32,
    *,
    fps: int = 8,
    size: int = 64,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    suffix: str = "mp4",
    **options: str,
) -> bytes:
    """H.264 frames, with an AAC sound track where `sound` is given; no frames: the sound alone."""
    with tempfile.TemporaryDirectory() as folder:  # a header in front needs a file that is read again
        path = Path(folder) / "film"
        with av.open(str(path), "w", format=suffix, options=options) as container:
            film = (
                container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"}) if frames else None
            )
            track = container.add_stream("aac", rate=rate, layout="mono") if sound is not None else None
            if film is not None:
                film.width = film.height = size
                film.pix_fmt = "yuv420p"
                for i in range(frames):
                    container.mux(film.encode(av.VideoFrame.from_ndarray(frame(i, size), format="rgb24")))
                container.mux(film.encode())
            if track is not None:
                assert sound is not None
                samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
                samples.sample_rate, samples.pts = rate, 0
                container.mux(track.encode(samples))
                container.mux(track.encode())
        return path.read_bytes()


def mp3(sound: np.ndarray, *, cover: bytes, rate: int = 16_000) -> bytes:
    """A song of `sound` float32 [S] with the PNG `cover` in its ID3 tag."""
    out = BytesIO()
    with av.open(out, "w", format="mp3", options={"id3v2_version": "0"}) as container:
        track = container.add_stream("libmp3lame", rate=rate, layout="mono")
        samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        container.mux(track.encode(samples))
        container.mux(track.encode())
    picture = b"\0image/png\0\3\0" + cover
    tag = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    seven = bytes((len(tag) >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + seven + tag + out.getvalue()


def wav(values: np.ndarray, rate: int = 16_000) -> bytes:
    """A WAV file of values [S] or [S, channels] as they are: int16, uint8 or float32."""
    samples = values if values.ndim == 2 else values[:, None]
    width, kind = samples.dtype.itemsize, 3 if samples.dtype.kind == "f" else 1
    channels, body = samples.shape[1], samples.tobytes()
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * width, channels * width, 8 * width)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def encoded(sound: np.ndarray, suffix: str, codec: str, *, rate: int = 16_000) -> bytes:
    """A file of `sound` float32 [S] in any container and codec that FFmpeg writes: `encoded(wave, "adts", "aac")`."""
    out = BytesIO()
    with av.open(out, "w", format=suffix) as container:
        track = container.add_stream(codec, rate=rate, layout="mono")
        samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = rate, 0
        container.mux(track.encode(samples))
        container.mux(track.encode())
    return out.getvalue()
