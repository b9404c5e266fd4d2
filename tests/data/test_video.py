"""Videos: the frames of qwen-vl-utils with their times, the same from decord and PyAV; damaged files are named."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils.vision_process import smart_nframes

from mmreason.data.media import MediaError, MediaLimits, check, decode
from mmreason.data.media import video as room
from mmreason.data.media.container import Track
from mmreason.data.media.video import by_decord, by_pyav, plan_video, sample_indices
from mmreason.types import MediumRef
from tests.data.bad_media import REAL, without_data
from tests.data.clips import frame, mp3, mp4, tone, wav

LIMITS = MediaLimits()
FILM = mp4(sound=tone())


def inline(content: bytes, kind: str = "video") -> MediumRef:
    return MediumRef(kind, "", content=content)  # type: ignore[arg-type]


def real(name: str) -> bytes:
    if not (REAL / name).is_file():
        pytest.skip(f"{REAL / name} is not there")
    return (REAL / name).read_bytes()


def test_frames_and_times(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.mp4", FILM)
    medium = decode(MediumRef("video", "a.zip#in/a.mp4", root=str(tmp_path)), LIMITS)
    assert medium.frames is not None and medium.timestamps is not None and medium.frame_indices is not None
    assert medium.frames.shape == (8, 64, 64, 3) and medium.frames.dtype == np.uint8
    assert medium.frame_indices.tolist() == [0, 4, 9, 13, 18, 22, 27, 31]
    assert medium.timestamps.tolist() == [0, 0.5, 1.125, 1.625, 2.25, 2.75, 3.375, 3.875]
    assert (medium.video_fps, medium.total_frames) == (8.0, 32)
    for shown, i in zip(medium.frames, medium.frame_indices, strict=True):
        errors = [np.abs(shown.astype(int) - frame(k)).mean() for k in range(32)]
        assert int(np.argmin(errors)) == i


@pytest.mark.parametrize("total", [2, 3, 5, 32, 100, 1000])
@pytest.mark.parametrize(
    ("fps", "rate", "most"), [(2.0, 8.0, 16), (1.0, 29.97, 768), (4.0, 3.0, 7), (0.1, 25.0, 2)]
)
def test_as_many_frames_as_qwen_vl_utils_takes(total: int, fps: float, rate: float, most: int) -> None:
    got = sample_indices(total, rate, MediaLimits(fps=fps, max_frames=most))
    assert len(got) == smart_nframes({"fps": fps, "max_frames": most}, total, rate)
    assert got[0] == 0 and got[-1] == total - 1 and (np.diff(got) > 0).all()


def test_one_frame_may_be_wanted() -> None:
    assert sample_indices(100, 25.0, MediaLimits(max_frames=1)).tolist() == [0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "film"])
def test_a_still_is_no_video(kind: str) -> None:
    """FFmpeg takes pictures for videos of one frame; qwen-vl-utils refuses one frame, and so do we, by name."""
    out = BytesIO()
    if kind != "film":
        Image.new("RGB", (64, 64), "red").save(out, kind)
    content = out.getvalue() or mp4(1)
    for look in (decode, check):
        with pytest.raises(MediaError, match="a.mp4: got 1 frame; a video has 2 or more.* as an image"):
            look(MediumRef("video", "a.mp4", content=content), LIMITS)
    with pytest.raises(ValueError, match="nframes should in interval"):
        smart_nframes({"fps": 2.0}, 1, 25.0)


def test_a_picture_that_moves_is_a_video() -> None:
    out = BytesIO()
    first, *rest = [Image.fromarray(frame(i)) for i in range(8)]
    first.save(out, "GIF", save_all=True, append_images=rest, duration=250)
    assert decode(inline(out.getvalue()), LIMITS).frames is not None


def test_the_cover_of_a_song_is_no_video() -> None:
    """Its picture is a stream of one packet that is never shown."""
    out = BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    content = mp3(tone(), cover=out.getvalue())
    with pytest.raises(MediaError, match="a.mp3: got no video stream"):
        decode(MediumRef("video", "a.mp3", content=content), LIMITS)
    assert decode(inline(content, "audio"), LIMITS).waveform is not None


@pytest.mark.parametrize(
    "name", ["made", "b_frames", "mmaction2_test.avi", "mmaction2_demo.mp4", "decord_flipping_a_pancake.mkv"]
)
def test_decord_and_pyav_give_the_same_frames(name: str) -> None:
    made = {"made": FILM, "b_frames": mp4(50, fps=25, size=96, suffix="matroska")}
    data = made[name] if name in made else real(name)
    plan = plan_video(data, name, LIMITS)
    one, other = by_decord(data, plan), by_pyav(data, name, plan)
    assert one is not None and np.array_equal(one, other)


@pytest.mark.parametrize("why", ["missing", "gives up", "counts otherwise"])
def test_pyav_stands_in_for_decord(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = decode(inline(FILM), LIMITS).frames
    decord: Any = room.decord_module()

    class Reader:
        def __init__(self, *args: object, **kwargs: object) -> None:
            if why == "gives up":
                raise decord.DECORDError("no")

        def __len__(self) -> int:
            return 31

    if why == "missing":
        monkeypatch.setattr(room, "decord_module", lambda: None)
    monkeypatch.setattr(decord, "VideoReader", Reader)
    got = decode(inline(FILM), LIMITS).frames
    assert got is not None and wanted is not None and np.array_equal(got, wanted)


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize("name", ["decord_corrupted.mp4", "noise in the middle"])
def test_a_damaged_stream_is_named(name: str, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader == "pyav":
        monkeypatch.setattr(room, "decord_module", lambda: None)
    content = real(name) if name.endswith("mp4") else without_data(FILM)
    with pytest.raises(MediaError, match=r"bad.mp4: the video (cannot be read|is torn)|frames decode"):
        decode(MediumRef("video", "bad.mp4", content=content), LIMITS)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "name", ["mp4", "faststart", "matroska", "mmaction2_test.avi", "decord_flipping_a_pancake.mkv"]
)
def test_half_a_video_is_refused_before_decord_sees_it(
    name: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"mp4": FILM, "faststart": mp4(movflags="+faststart"), "matroska": mp4(40, suffix="matroska")}
    whole = made[name] if name in made else real(name)
    decode(inline(whole), LIMITS)
    monkeypatch.setattr(room, "by_decord", lambda data, plan: pytest.fail("decord may end the process"))
    said = r"the video (is torn|cannot be read)|got (no|an empty) video stream"
    if name in ("mp4", "faststart"):
        said = r"the video is torn: its box m\w+ lacks \d+ bytes; get the whole file"
    with pytest.raises(MediaError, match=f"half.mp4: ({said})"):
        decode(MediumRef("video", "half.mp4", content=whole[: int(share * len(whole))]), LIMITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(tone()), "got no video stream, only audio"),
        (mp4(0, sound=tone()), "got no video stream, only audio"),
        (b"", "the video cannot be read"),
        (
            b"no film at all",
            r"the video cannot be read \(Invalid data found when processing input\); allowed",
        ),
    ],
)
def test_what_is_no_video_is_refused(content: bytes, message: str) -> None:
    for look in (decode, check):
        with pytest.raises(MediaError, match=message):
            look(MediumRef("video", "a.mp4", content=content), LIMITS)


def test_too_much_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "by_decord", lambda data, plan: pytest.fail("decoded"))
    cases = [
        (replace(LIMITS, max_video_pixels=8 * 64 * 64 - 1), "8 frames x 64 x 64 = 32768 pixels; .* 1 to 32767"),
        (replace(LIMITS, max_media_seconds=3.9), r"got 4.0 s; allowed are 3.9 \(max_media_seconds\)"),
        (replace(LIMITS, max_file_bytes=100), "allowed are 100"),
    ]  # fmt: skip
    for limits, message in cases:
        for look in (decode, check):
            with pytest.raises(MediaError, match=message):
                look(inline(FILM), limits)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(1e12, r"allowed are 600 \(max_media_seconds\)"), (599.0, "promises .* 599.00 s, .* 32 in 4.00 s")],
)
def test_an_absurd_duration_is_refused(seconds: float, message: str) -> None:
    content = bytearray(mp4(suffix="matroska"))
    at = content.index(b"\x44\x89\x88") + 3  # Matroska's Duration, a float64 in milliseconds
    content[at : at + 8] = struct.pack(">d", 1000 * seconds)
    with pytest.raises(MediaError, match=message):
        decode(inline(bytes(content)), LIMITS)


def test_a_video_in_which_no_time_passes_is_refused() -> None:
    track = Track(np.zeros(32), 0.0, plain=False, packets=())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MediaError, match="got 32 frames in 0.00 s"):
        patch.setattr(room, "survey", lambda *args: track)
        decode(inline(FILM), LIMITS)
