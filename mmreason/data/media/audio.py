"""Sound: any container, rate and channel count to mono float32 at one rate; the sound track of a video too.

Clipped sound is taken as it is: it is what was recorded, and a model hears loudness all the same. Sound far beyond full
scale is not: it was never scaled to -1..1, and features of what is loud enough are no numbers.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from mmreason.data.media.container import opened, origin, survey, within
from mmreason.data.media.limits import MediaError, MediaLimits, reading

ALLOWED = "whole files with sound that FFmpeg plays"
KERNEL = 2**24  # most weights of a resampling filter, which has those of one rate's part times the other's
LOUDEST = 100.0  # times full scale: 40 dB above what a file in integers holds
SHORTEST = 0.025  # s: the window of which log-mel frames and filterbanks are made
SCALES = {"u8": 2.0**7, "s16": 2.0**15, "s32": 2.0**31, "s64": 2.0**63, "flt": 1.0, "dbl": 1.0}


def check_audio(data: bytes, name: str, limits: MediaLimits) -> float:
    """Seconds of the sound. Reads every packet, decodes none; raises as `decode_audio` for what packets tell."""
    with reading(name, "sound", ALLOWED), opened(data, name, "audio") as (container, stream):
        rate = _rate(stream, name)
        return round(survey(container, stream, name, limits).end * rate) / rate


def decode_audio(data: bytes, name: str, limits: MediaLimits) -> np.ndarray:
    """Mono float32 [S] at `limits.sampling_rate`, from the start of the file's clock (silence before a late track).

    Raises:
        MediaError: no sound track, nothing in it, torn, damaged, too long, shorter than SHORTEST, or values that are no
            numbers or beyond LOUDEST.
    """
    with reading(name, "sound", ALLOWED), opened(data, name, "audio") as (container, stream):
        rate = _rate(stream, name)
        wave = _decode(container, stream, name, limits)
        if not np.isfinite(wave).all():
            wrong = int((~np.isfinite(wave)).sum())
            raise MediaError(
                f"{name}: got {wrong} samples that are NaN or infinite; write it anew or remove its row"
            )
        if (peak := float(np.abs(wave).max(initial=0.0))) > LOUDEST:
            raise MediaError(
                f"{name}: got samples of up to {peak:.3g}; full scale is 1, allowed are {LOUDEST:g}: divide them by "
                "what full scale is in them (32768 where they were integers of 16 bits), or remove its row"
            )
        if rate != limits.sampling_rate:
            wave = _resample(wave, rate, limits.sampling_rate)
    if len(wave) < round(SHORTEST * limits.sampling_rate):
        raise MediaError(
            f"{name}: got sound of {len(wave)} samples, {len(wave) / limits.sampling_rate:.4f} s; allowed are "
            f"{SHORTEST:g} s and more: remove its row"
        )
    return wave


def _decode(container: Any, stream: Any, name: str, limits: MediaLimits) -> np.ndarray:
    """Mono float32 at the file's own rate."""
    rate, track = stream.codec_context.sample_rate, survey(container, stream, name, limits)
    pieces: list[np.ndarray] = []
    start, count = 0.0, 0
    for packet in (*track.packets, None):  # None: what the codec still holds
        for frame in stream.decode(packet):
            if frame.sample_rate != rate:
                raise MediaError(
                    f"{name}: the rate changes from {rate} to {frame.sample_rate} Hz; write it anew"
                )
            if not count and frame.pts is not None:
                start = frame.pts * float(frame.time_base) - origin(container)
            pieces.append(_mono(frame))
            count += len(pieces[-1])
            within(count / rate, name, limits)
    if not count:
        raise MediaError(f"{name}: got sound of 0 samples; remove its row")
    return _on_clock(np.concatenate(pieces), round(start * rate), round(track.end * rate))


def _mono(frame: Any) -> np.ndarray:
    """One decoded frame -> the mean of its channels, float32 [S], -1..1 for sound in integers."""
    kind, channels = frame.format.name.removesuffix("p"), frame.layout.nb_channels
    if kind not in SCALES:
        raise ValueError(f"samples of format {frame.format.name}; allowed are {', '.join(SCALES)}")
    values = frame.to_ndarray().astype(np.float64 if kind == "dbl" else np.float32)
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    if kind == "u8":
        values -= SCALES[kind]
    return (values.mean(axis=0) / SCALES[kind]).astype(np.float32)


def _on_clock(wave: np.ndarray, start: int, end: int) -> np.ndarray:
    """Silence before a track that starts late; nothing before the clock's start, nor after the last packet's end.

    Codecs fill their last packet up; its duration tells how much of it is sound.
    """
    if start > 0:
        wave = np.concatenate([np.zeros(start, np.float32), wave])
    else:
        wave = wave[-start:]
    return wave[:end] if end > 0 else wave


def _rate(stream: Any, name: str) -> int:
    """The stream's rate in Hz."""
    rate = stream.codec_context.sample_rate or 0
    if rate <= 0:
        raise MediaError(f"{name}: got sound at {rate} Hz; allowed is any rate above 0: write it anew")
    return rate


def _ratio(rate: int, wanted: int) -> Fraction:
    """Samples wanted for one that is there: exact, or where that takes too large a filter, the nearest that does not.

    Example: 11127 Hz for 16000 are 16000 / 11127, whose filter would have 178 million weights; 4252 / 2957 makes the
    clock wrong by 0.05 ms in ten minutes (the worst, 16001 Hz as 16000: by 38 ms).
    """
    exact = Fraction(wanted, rate)
    if exact.numerator * exact.denominator <= KERNEL:
        return exact
    return exact.limit_denominator(math.isqrt(KERNEL * rate // wanted))


def _resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    # imported here: pictures and videos need not wait for it
    from torchaudio.functional import resample

    ratio = _ratio(rate, wanted)
    heard = resample(torch.from_numpy(wave), ratio.denominator, ratio.numerator).numpy()
    return heard[: math.ceil(Fraction(len(wave) * wanted, rate))]
