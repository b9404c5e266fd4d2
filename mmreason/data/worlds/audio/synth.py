"""Sounds of the audio world: tones of four timbres at three pitches, and four syllables, as 16-bit WAV bytes.

A periodic sound is a wavetable made from the strengths of its harmonics, read at a slightly gliding pitch; a
syllable is two such tables, its onset fading into its vowel. Every exact pitch, phase, strength and length of an
attack comes from `rng`, so no two sounds of one name are alike.
"""

from __future__ import annotations

import io
import wave as wave_file
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TONES = ("beep", "horn", "bell", "click")
SYLLABLES = ("ba", "di", "gu", "sho")
SOUNDS = TONES + SYLLABLES
PITCHES = ("low", "middle", "high")
LOUDS = ("soft", "loud")
RATE = 16_000  # samples a second

HERTZ = {"low": (190.0, 240.0), "middle": (480.0, 600.0), "high": (1200.0, 1500.0)}  # of a tone
VOICE = (110.0, 200.0)  # Hz: syllables have no pitch class, speakers differ
LEVELS = {"soft": (0.022, 0.032), "loud": (0.10, 0.14)}  # root mean square over the note, of full scale 1
GROUND = (0.0005, 0.003)  # root mean square of the background noise
TABLE = 2048
BELL = ((1.0, 1.0, 3.0), (2.76, 0.55, 5.0), (5.40, 0.30, 8.0))  # ratio, strength, decay 1/s
# syllable -> formants (Hz) at its onset and in its vowel, and the band and share of breath noise before it
FORMANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ba": ((350.0, 900.0, 2300.0), (780.0, 1200.0, 2500.0)),
    "di": ((250.0, 1800.0, 2700.0), (280.0, 2300.0, 3000.0)),
    "gu": ((250.0, 1500.0, 2200.0), (320.0, 750.0, 2300.0)),
    "sho": ((400.0, 1400.0, 2400.0), (480.0, 900.0, 2500.0)),
}
BREATH = (2500.0, 5500.0)  # Hz: the noise that "sho" begins with

Rng = np.random.Generator


@dataclass(frozen=True)
class Note:
    """One sound on the timeline; syllables leave `pitch` empty.

    Example: `Note("bell", "high", "soft", start=1.2, seconds=0.4)`, `Note("ba", "", "loud", 2.0, 0.4)`.
    """

    kind: str
    pitch: str
    loud: str
    start: float
    seconds: float

    @property
    def end(self) -> float:
        """Seconds from the beginning of the clip."""
        return self.start + self.seconds


def _check(note: Note, seconds: float) -> None:
    pitches = PITCHES if note.kind in TONES else ("",)
    for what, got, fine, allowed in (
        ("kind", note.kind, note.kind in SOUNDS, ", ".join(SOUNDS)),
        ("pitch", note.pitch, note.pitch in pitches, ", ".join(map(repr, pitches))),
        ("loud", note.loud, note.loud in LOUDS, ", ".join(LOUDS)),
        ("seconds", note.seconds, note.seconds >= 0.1, "at least 0.1"),
        ("start", note.start, 0 <= note.start and note.end <= seconds, f"a note that ends by {seconds} s"),
    ):
        if not fine:
            raise ValueError(f"note {note}: {what} is {got!r}; allowed is {allowed}")


def _between(span: tuple[float, float], rng: Rng) -> float:
    return float(rng.uniform(*span))


def _cycles(hertz: float, n: int, rate: int, rng: Rng) -> np.ndarray:
    """How many periods have passed at each of n samples, float32 [n]; the pitch glides by up to 3%."""
    glide = 1 + 0.03 * rng.uniform(-1, 1) * np.linspace(-0.5, 0.5, n, dtype=np.float32)
    return np.float32(rng.random()) + np.cumsum(glide * np.float32(hertz / rate), dtype=np.float32)


def _table(strengths: np.ndarray, rng: Rng) -> np.ndarray:
    """One period [TABLE] with these strengths of the harmonics 1, 2, ..., in random phases."""
    spectrum = np.zeros(TABLE // 2 + 1, dtype=np.complex64)
    phases = rng.uniform(0, 2 * np.pi, size=len(strengths))
    spectrum[1 : len(strengths) + 1] = strengths * np.exp(1j * phases)
    return np.fft.irfft(spectrum, TABLE).astype(np.float32)


def _read(table: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    return table[(cycles * TABLE).astype(np.int32) & (TABLE - 1)]


def _harmonics(hertz: float, rate: int) -> np.ndarray:
    """1, 2, ... as far as the rate can hold."""
    return np.arange(1, max(2, int(0.45 * rate / hertz)) + 1)


def _band_noise(band: tuple[float, float], n: int, rate: int, rng: Rng) -> np.ndarray:
    """Noise [n] of flat strength inside the band (Hz) and none outside."""
    spectrum = np.fft.rfft(rng.standard_normal(n, dtype=np.float32))
    hertz = np.fft.rfftfreq(n, 1 / rate)
    return np.fft.irfft(spectrum * ((hertz >= band[0]) & (hertz <= band[1])), n).astype(np.float32)


def _tone(kind: str, hertz: float, n: int, rate: int, rng: Rng) -> np.ndarray:
    """Beep: nearly a sine. Horn: strong harmonics. Bell: partials out of tune, dying. Click: a row of bursts."""
    time = np.arange(n, dtype=np.float32) / np.float32(rate)
    if kind == "click":
        period, fade = np.float32(rng.uniform(0.055, 0.07)), np.float32(rng.uniform(50, 70))
        since = time % period
        phases = rng.random(int(time[-1] / period) + 1, dtype=np.float32)[(time / period).astype(np.int32)]
        return np.exp(-fade * since) * np.sin(2 * np.pi * (np.float32(hertz) * since + phases))
    cycles = _cycles(hertz, n, rate, rng)
    if kind == "bell":
        out = np.zeros(n, dtype=np.float32)
        for ratio, strength, decay in BELL:
            if hertz * ratio < 0.45 * rate:
                swing = np.sin(2 * np.pi * (np.float32(ratio) * cycles + np.float32(rng.random())))
                out += (
                    np.float32(strength * rng.uniform(0.8, 1.2)) * np.exp(-np.float32(decay) * time) * swing
                )
        return out
    numbers = _harmonics(hertz, rate)
    steep = rng.uniform(3.5, 4.5) if kind == "beep" else rng.uniform(0.4, 0.7)
    return _read(_table(numbers**-steep, rng), cycles)


def _vowel(formants: Sequence[float], hertz: float, rate: int, rng: Rng) -> np.ndarray:
    """A wavetable whose harmonics follow the formants of one speaker."""
    numbers = _harmonics(hertz, rate)
    speaker = rng.uniform(0.94, 1.06)
    strengths = np.zeros(len(numbers))
    for strength, centre in zip((1.0, 0.7, 0.35), formants, strict=True):
        width = 60 + 0.06 * centre
        strengths += strength / (1 + ((numbers * hertz - centre * speaker) / width) ** 2)
    return _table(strengths / numbers**0.15, rng)


def _syllable(kind: str, n: int, rate: int, rng: Rng) -> np.ndarray:
    """A voice that moves from the onset's formants to the vowel's within about 70 ms; "sho" starts in noise."""
    hertz = _between(VOICE, rng)
    onset, vowel = (_vowel(formants, hertz, rate, rng) for formants in FORMANTS[kind])
    cycles = _cycles(hertz, n, rate, rng)
    time = np.arange(n, dtype=np.float32) / np.float32(rate)
    late = np.clip(time / np.float32(rng.uniform(0.06, 0.085)), 0, 1)
    voice = (1 - late) * _read(onset, cycles) + late * _read(vowel, cycles)
    if kind != "sho":
        return voice
    edge = min(round(rng.uniform(0.11, 0.14) * rate), n // 2)
    breath = _band_noise(BREATH, edge, rate, rng)
    voice[:edge] = breath * (0.6 * voice[edge:].std() / breath.std())
    return voice


def _edges(n: int, rate: int, rng: Rng) -> np.ndarray:
    """An envelope [n] with a quick rise and a somewhat slower fall."""
    envelope = np.ones(n, dtype=np.float32)
    for seconds, part in (
        (rng.uniform(0.006, 0.015), slice(None)),
        (rng.uniform(0.02, 0.04), slice(None, None, -1)),
    ):
        m = int(seconds * rate)
        envelope[part][:m] = 0.5 - 0.5 * np.cos(np.pi * np.arange(m, dtype=np.float32) / m)
    return envelope


def play(note: Note, rate: int, rng: Rng) -> np.ndarray:
    """The note alone, float32 [its samples], at its level."""
    n = round(note.seconds * rate)
    if note.kind in TONES:
        body = _tone(note.kind, _between(HERTZ[note.pitch], rng), n, rate, rng)
    else:
        body = _syllable(note.kind, n, rate, rng)
    body = body * _edges(n, rate, rng)
    return body * np.float32(_between(LEVELS[note.loud], rng) / np.sqrt(np.mean(body**2)))


def sound(notes: Sequence[Note], seconds: float, rate: int, rng: Rng) -> np.ndarray:
    """The notes over a faint background noise, float32 [round(seconds * rate)] in -1..1.

    Raises ValueError naming the note and what it may hold: see `SOUNDS`, `PITCHES`, `LOUDS`.

    Example: `sound([Note("beep", "high", "loud", 0.5, 0.4)], 4.0, RATE, np.random.default_rng(0))`.
    """
    samples = round(seconds * rate)
    out = rng.standard_normal(samples, dtype=np.float32) * np.float32(_between(GROUND, rng))
    for note in notes:
        _check(note, seconds)
        body = play(note, rate, rng)
        first = min(round(note.start * rate), samples - len(body))
        out[first : first + len(body)] += body
    return np.clip(out, -1, 1)


def wav_bytes(wave: np.ndarray, rate: int) -> bytes:
    """Mono 16-bit WAV of a wave [S] in -1..1."""
    buffer = io.BytesIO()
    with wave_file.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
