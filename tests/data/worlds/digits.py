"""Recordings for tests: a folder like the Free Spoken Digit Dataset's in which every digit is a tone of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmreason.data.worlds.audio.synth import wav_bytes
from mmreason.data.worlds.spoken.recordings import RATE, takes_of

HERTZ = {digit: 300.0 + 300.0 * digit for digit in range(10)}


def tone(digit: int, seconds: float, rate: int = RATE) -> np.ndarray:
    """The tone that stands for a digit."""
    return 0.3 * np.sin(2 * np.pi * HERTZ[digit] * np.arange(round(seconds * rate)) / rate)


def digit_of(wave: np.ndarray, rate: int) -> int:
    """Which tone is strongest in a wave."""
    strongest = np.argmax(np.abs(np.fft.rfft(wave))) * rate / len(wave)
    return min(HERTZ, key=lambda digit: abs(HERTZ[digit] - strongest))


def write_recordings(folder: Path) -> Path:
    """A tone for every recording that the world asks for; no two files of a digit are alike in length."""
    folder.mkdir(parents=True)
    for split, speaker in (("train", "known"), ("test", "known"), ("test", "unseen")):
        for i, take in enumerate(takes_of(split, speaker)):
            wave = tone(take.digit, 0.2 + 0.0005 * (i % 600))
            (folder / take.file).write_bytes(wav_bytes(wave, RATE))
    return folder
