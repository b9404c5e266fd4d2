"""How a recording comes into its window: brought to the rate of all worlds, and for training rows said otherwise.

Said otherwise: quicker or slower (with its pitch), through another microphone, with bands and moments masked
(SpecAugment, arXiv 1904.08779, on the wave), in noise, louder or softer.
"""

from __future__ import annotations

import numpy as np

from mmreason.data.worlds.audio.synth import RATE as RATE
from mmreason.data.worlds.spoken.recordings import RATE as RECORDED

SECONDS = 1.0  # of a window
MOST = 0.96  # seconds of a recording that are kept: the loudest stretch of longer ones
SPEEDS = (0.82, 1.22)
LEVELS = (0.4, 1.6)  # factor
TILT, RIPPLE = 8.0, 4.0  # dB: most over the whole band, and how far the curve swings
MASKED_HERTZ = (100.0, 500.0)  # width of a masked band
MASKED_SECONDS = (0.02, 0.07)
NOISE = (0.0005, 0.02)  # root mean square of full scale 1
OFTEN = 0.5  # share of the training clips that get each of the masks and the noise

Rng = np.random.Generator


def loudest(wave: np.ndarray, most: int) -> np.ndarray:
    """The `most` samples in a row with the most energy; a shorter wave is returned whole."""
    if len(wave) <= most:
        return wave
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    first = int(np.argmax(energy[most:] - energy[:-most]))
    return wave[first : first + most]


def plain(wave: np.ndarray) -> np.ndarray:
    """A recording [S] at RECORDED as it is, float32 at RATE, of at most MOST seconds."""
    return loudest(_at_rate(np.fft.rfft(wave), len(wave), 1.0), round(MOST * RATE))


def otherwise(wave: np.ndarray, rng: Rng) -> np.ndarray:
    """A recording [S] at RECORDED as a training row hears it, float32 at RATE, of at most MOST seconds."""
    spectrum = np.fft.rfft(wave) * _microphone(len(wave), rng)
    out = loudest(_at_rate(spectrum, len(wave), rng.uniform(*SPEEDS)), round(MOST * RATE))
    if rng.random() < OFTEN:
        n = round(rng.uniform(*MASKED_SECONDS) * RATE)
        first = int(rng.integers(max(len(out) - n, 1)))
        out[first : first + n] = 0
    return out * np.float32(rng.uniform(*LEVELS))


def window(wave: np.ndarray, start: float, noisy: bool, rng: Rng) -> np.ndarray:
    """Silence of SECONDS in which the wave begins at `start` seconds, with noise over all of it or with none."""
    out = np.zeros(round(SECONDS * RATE), dtype=np.float32)
    first = round(start * RATE)
    out[first : first + len(wave)] = wave
    if noisy and rng.random() < OFTEN:
        level = np.exp(rng.uniform(*np.log(NOISE)))
        out += _at_rate(np.fft.rfft(rng.standard_normal(round(SECONDS * RECORDED))), RECORDED, 1.0) * level
    return np.clip(out, -1, 1)


def _at_rate(spectrum: np.ndarray, n: int, speed: float) -> np.ndarray:
    """The wave of n samples at RECORDED with this spectrum, float32 at RATE, `speed` times as quick."""
    longer = 2 * round(n * RATE / RECORDED / speed / 2)  # an even number transforms more quickly
    return (np.fft.irfft(spectrum[: longer // 2 + 1], longer) * (longer / n)).astype(np.float32)


def _microphone(n: int, rng: Rng) -> np.ndarray:
    """Strength of each frequency of a wave of n samples: a tilt, a slow ripple, and sometimes a masked band."""
    bands = np.linspace(0, 1, n // 2 + 1)
    decibels = TILT * rng.uniform(-1, 1) * (bands - 0.3)
    decibels += RIPPLE * rng.uniform() * np.cos(2 * np.pi * (rng.uniform(0.5, 3) * bands + rng.random()))
    strength = 10 ** (decibels / 20)
    if rng.random() < OFTEN:
        width = rng.uniform(*MASKED_HERTZ) * 2 / RECORDED
        low = rng.uniform(0, 1 - width)
        strength[(low <= bands) & (bands < low + width)] = 0
    return strength
