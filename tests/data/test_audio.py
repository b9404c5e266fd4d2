"""Sound: any container, rate and channels to mono at the wanted rate, on the file's clock; bad files by name."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmreason.data.media import MediaError, MediaLimits, check, decode
from mmreason.data.media.audio import _ratio
from mmreason.types import MediumRef
from tests.data.clips import encoded, mp4, tone, wav

LIMITS = MediaLimits()


def heard(content: bytes, limits: MediaLimits = LIMITS) -> np.ndarray:
    medium = decode(MediumRef("audio", "", content=content), limits)
    assert medium.waveform is not None and medium.waveform.dtype == np.float32
    assert medium.sampling_rate == limits.sampling_rate
    return medium.waveform


def test_wav_samples_are_exact(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 16384, -32768, 32767] * 100, dtype=np.int16)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.wav", wav(values))
    medium = decode(MediumRef("audio", "a.zip#a.wav", root=str(tmp_path)), LIMITS)
    assert medium.waveform is not None and np.array_equal(medium.waveform, values / np.float32(32768))
    assert np.array_equal(
        heard(wav(np.array([128, 255, 0, 192] * 100, np.uint8))), [0, 127 / 128, -1, 0.5] * 100
    )
    assert np.array_equal(heard(wav(tone(0.1))), tone(0.1))


def test_channels_are_averaged() -> None:
    left, right = tone(0.1), tone(0.1, hertz=880.0)
    assert np.allclose(heard(wav(np.stack([left, right], axis=1))), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [1499, 8000, 11_127, 22050, 44100, 47_999, 48000, 191_999])
def test_any_rate_is_brought_to_the_wanted_one(rate: int) -> None:
    got = heard(wav(tone(1.0, rate), rate))
    assert len(got) == 16_000
    late = abs(_ratio(rate, 16_000) * rate / 16_000 - 1)  # s in a second
    assert late < 0.04 / 600
    assert np.abs(got - tone(1.0))[400:-400].max() < 2e-3 + 440 * 2 * np.pi * late / 4
    assert len(heard(wav(tone(1.0)), replace(LIMITS, sampling_rate=8000))) == 8000


def test_the_sound_track_of_a_video_is_on_its_clock() -> None:
    wave = tone()
    wave[:16_000] = 0  # silence for a second: then the sound begins
    for frames in (32, 0):
        got = heard(mp4(frames, sound=wave))
        assert len(got) == 64_000  # what AAC fills its last packet up with is cut
        loud = np.flatnonzero(np.abs(got) > 0.1)
        assert abs(loud[0] - 16_000) < 160
        assert np.abs(got - wave)[17_000:63_000].max() < 0.02


def test_files_that_do_not_know_their_length_are_whole() -> None:
    """ADTS has no header, so FFmpeg guesses from its quiet beginning: minutes; AIFF's counts samples, not packets."""
    noise = np.random.default_rng(0).normal(0, 0.2, 128_000).clip(-1, 1).astype(np.float32)
    noise[:64_000] = 0  # eight seconds, the first four silent
    for suffix, codec in (("adts", "aac"), ("aiff", "pcm_s16be")):
        content = encoded(noise, suffix, codec)
        got = heard(content, replace(LIMITS, max_media_seconds=9.0))
        assert len(got) == pytest.approx(128_000, abs=2048)
        assert check(MediumRef("audio", "", content=content), LIMITS).seconds == pytest.approx(8.0, abs=0.13)


@pytest.mark.parametrize("told", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_is_whole(told: int) -> None:
    """Who writes to a pipe cannot go back to write the length, and leaves there what he began with."""
    values = np.random.default_rng(0).integers(-3000, 3000, 32_001, dtype=np.int16)
    whole = wav(values)
    at = whole.index(b"data") + 4
    got = heard(whole[:at] + told.to_bytes(4, "little") + whole[at + 4 :])
    assert np.array_equal(got, values / np.float32(32768))
    torn = MediumRef("audio", "", content=whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="torn"):  # where the length is told, it counts
        decode(torn, LIMITS)


def test_sound_beyond_full_scale_is_taken_up_to_40_decibels() -> None:
    """Files in floats may be that loud; a file of integers that was never scaled is louder."""
    assert np.array_equal(heard(wav(40 * tone(0.1))), 40 * tone(0.1))


def test_clipped_sound_is_taken_as_it_is() -> None:
    clipped = np.clip(8 * tone(0.5), -1, 1)
    assert np.array_equal(heard(wav(clipped)), clipped)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mp4(8), "got no sound track, only video"),
        (wav(np.zeros(0, np.int16)), "a.wav: got an empty sound track, 0 s; remove its row"),
        (wav(np.zeros(399, np.int16)), r"got sound of 399 samples, 0.0249 s; allowed are 0.025 s and more"),
        (wav(np.array([0, np.nan, 0.5, np.inf] * 9, np.float32)), "18 samples that are NaN or infinite"),
        (
            wav(8191 * tone(0.5)),
            r"got samples of up to 2.05e\+03; full scale is 1, .* divide them by .* \(32768",
        ),
        (wav(1e30 * tone(0.5)), r"got samples of up to 2.5e\+29"),  # finite, and its log-mel features are not
        (wav(tone(2.0))[:40_000], r"a.wav: the audio is torn: its packet (\d+) of \1 is cut or damaged"),
        (mp4(0, sound=tone(), movflags="+faststart")[:8000], "a.wav: the audio is torn"),
        (b"no sound at all", "a.wav: the sound cannot be read"),
        (b"", "a.wav: the sound cannot be read"),
    ],
    ids=[
        "no track",
        "empty",
        "short",
        "nan",
        "unscaled",
        "huge",
        "half",
        "half aac",
        "text",
        "nothing",
    ],
)
def test_bad_sound_is_named(content: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        decode(MediumRef("audio", "a.wav", content=content), LIMITS)


def test_too_long_is_refused_from_the_header() -> None:
    limits = replace(LIMITS, max_media_seconds=1.0)
    for look in (decode, check):
        with pytest.raises(MediaError, match=r"got 2.0 s; allowed are 1 \(max_media_seconds\)"):
            look(MediumRef("audio", "", content=wav(tone(2.0))), limits)
