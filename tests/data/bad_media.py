"""Films and sounds that are right, and what is wrong with such files in life, as rows: for `validate` and for runs."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data import clips

REAL = Path(__file__).parents[3] / "shared" / "data" / "video"  # real recordings, beside the repository
Media = list[tuple[str, str]]  # (kind, file)

WHOLE: dict[str, Media] = {
    "film": [("video", "film.mp4")],
    "wave": [("audio", "wave.wav")],
    "both": [("video", "film.mp4"), ("audio", "film.mp4")],
    "clipped": [("audio", "clipped.wav")],  # it is what was recorded
    "another rate": [("audio", "rate8000.wav")],
    "odd rate": [("audio", "rate11127.wav")],
}
# row -> its media, and what must be said of the last of them
BROKEN: dict[str, tuple[Media, str]] = {
    "torn": ([("video", "torn.mp4")], "torn.mp4: the video is torn"),
    "half a stream": ([("video", "half.ts")], "half.ts: the video is torn: its last packet has"),
    "half an ogg": ([("audio", "half.ogg")], "half.ogg: the audio is torn: its last page is cut"),
    "mute": ([("video", "mute.mp4"), ("audio", "mute.mp4")], "mute.mp4: got no sound track, only video"),
    "nan": ([("audio", "nan.wav")], "nan.wav: got 1 samples that are NaN"),
    "loud": ([("audio", "loud.wav")], "loud.wav: got samples of up to 2.5e+29; full scale is 1"),
    "half without its index": ([("video", "half.mp4")], "half.mp4: the video is torn: its box mdat lacks"),
    "long": ([("audio", "long.wav")], "long.wav: got 5.00 s of sound; this model hears at most 4.00 s"),
    "no film": ([("video", "wave.wav")], "wave.wav: got no video stream, only audio"),
    "still": ([("video", "still.png")], "still.png: got 1 frame; a video has 2 or more"),
    "empty sound": ([("audio", "empty.wav")], "empty.wav: got an empty sound track, 0 s"),
    "empty film": ([("video", "empty.mp4")], "empty.mp4: the video cannot be read"),
    "absurd": ([("video", "absurd.mkv")], "absurd.mkv: got 1000000000000.0 s; allowed are 600"),
    "noise": ([("video", "noise.mp4")], "noise.mp4: "),
    "corrupted": ([("video", "decord_corrupted.mp4")], "decord_corrupted.mp4: "),
}


def write_rows(folder: Path) -> tuple[Path, dict[str, str]]:
    """rows.jsonl with a row for each entry's media, given as typed parts; the files lie beside it.

    Returns its path, and what must be said of each broken row. The real recording is left out where it is not there.
    """
    folder.mkdir(parents=True)
    for name, content in _files().items():
        (folder / name).write_bytes(content)
    broken = {name: entry for name, entry in BROKEN.items() if (folder / entry[0][-1][1]).is_file()}
    lines = []
    for name, media in (WHOLE | {name: media for name, (media, _) in broken.items()}).items():
        parts = [{"type": kind, kind: file} for kind, file in media] + [{"type": "text", "text": "which?"}]
        truth = {"solution": "red", "problem_type": "single_choice", "options": ["red", "blue"]}
        lines.append({"id": name, "messages": [{"role": "user", "content": parts}], **truth})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, {name: why for name, (_, why) in broken.items()}


def _files() -> dict[str, bytes]:
    film = clips.mp4(16, sound=clips.tone(2.0), movflags="faststart")
    behind = clips.mp4(16, sound=clips.tone(2.0))  # its index stands at its end, as most writers put it
    stream = clips.mp4(16, sound=clips.tone(2.0), suffix="mpegts")
    ogg = clips.encoded(clips.tone(2.0), "ogg", "libopus")
    picture = BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    with_nan = clips.tone(2.0)
    with_nan[5] = float("nan")
    absurd = bytearray(clips.mp4(suffix="matroska"))
    at = absurd.index(b"\x44\x89\x88") + 3  # Matroska's Duration, a float64 in milliseconds
    absurd[at : at + 8] = struct.pack(">d", 1e15)
    files = {
        "film.mp4": film,
        "torn.mp4": film[: len(film) // 2],
        "half.mp4": behind[: len(behind) // 2],
        "half.ts": stream[: len(stream) // 2 + 60],  # exactly half ends between two packets: nobody can know
        "half.ogg": ogg[: len(ogg) // 2],
        "mute.mp4": clips.mp4(16),
        "empty.mp4": b"",
        "noise.mp4": without_data(clips.mp4(16)),
        "absurd.mkv": bytes(absurd),
        "still.png": picture.getvalue(),
        "wave.wav": clips.wav(clips.tone(2.0)),
        "clipped.wav": clips.wav(np.clip(8 * clips.tone(2.0), -1, 1)),
        "nan.wav": clips.wav(with_nan),
        "loud.wav": clips.wav(1e30 * clips.tone(2.0)),
        "long.wav": clips.wav(clips.tone(5.0)),
        "empty.wav": clips.wav(np.zeros(0, np.int16)),
    }
    for rate in (8000, 11_127):
        files[f"rate{rate}.wav"] = clips.wav(clips.tone(2.0, rate), rate)
    real = REAL / "decord_corrupted.mp4"
    return files | ({real.name: real.read_bytes()} if real.is_file() else {})


def without_data(content: bytes) -> bytes:
    """An MP4 whose header and index are whole and whose stream is noise."""
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    noise = np.random.default_rng(0).integers(0, 256, end - start, dtype=np.uint8).tobytes()
    return content[:start] + noise + content[end:]
