"""What a video or sound file holds, read from its packets without decoding one: cheap, and safe on damaged files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import av
import numpy as np

from mmreason.data.media.ends import cut_off
from mmreason.data.media.limits import MediaError, MediaLimits

Kind = Literal["video", "audio"]
MISSING = {"video": "no video stream", "audio": "no sound track"}
EMPTY = {"video": "an empty video stream, 0 s", "audio": "an empty sound track, 0 s"}
MICROSECOND = 1e-6
TS_GAP = 0.7  # s from one time stamp to the next at most (ISO/IEC 13818-1, 2.7.4)
PIPED = 0x7FFFF000  # bytes from which on a WAV's length is no length


@contextmanager
def opened(data: bytes, name: str, kind: Kind) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of this kind.

    Raises:
        MediaError: it has none, or the file is cut off.
    """
    # before FFmpeg sees an MP4: it opens none whose index is what is lost, and does not say why
    if data[4:8] == b"ftyp" and (why := cut_off(data, "mp4")):
        raise _torn(name, kind, why)
    with av.open(BytesIO(_sized(data)), metadata_errors="ignore") as container:
        streams = getattr(container.streams, kind)
        if not streams:
            held = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise MediaError(
                f"{name}: got {MISSING[kind]}, only {', '.join(held)}; give a file with {kind}, or remove its row"
            )
        if why := cut_off(data, container.format.name):
            raise _torn(name, kind, why)
        yield container, streams[0]


def _torn(name: str, kind: str, why: str) -> MediaError:
    return MediaError(
        f"{name}: the {kind} is torn: {why}; get the whole file, write it anew if it is meant to be so, or remove its "
        "row"
    )


def _sized(data: bytes) -> bytes:
    """A WAV that was written to a pipe says that it holds nothing, or 2 GB or more: the same with its true length.

    FFmpeg would take its last samples for torn. Any other file is returned as it is.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] != b"data":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        at += at % 2
    size, held = int.from_bytes(data[at + 4 : at + 8], "little"), len(data) - at - 8
    if held <= 0 or 0 < size < PIPED:
        return data
    return data[: at + 4] + held.to_bytes(4, "little") + data[at + 8 :]


@dataclass(frozen=True)
class Track:
    """The packets of one stream on the container's clock, which its picture and its sound share.

    Example: 32 frames at 8 a second are `Track(times=[0.0, 0.125 ... 3.875], end=4.0, plain=True, packets=(...))`.
    """

    times: np.ndarray  # float64 [packets], seconds, ascending
    end: float  # seconds
    plain: bool  # every packet has its own time, and none is skipped when it is played
    packets: tuple[Any, ...]  # in the order of the file; they decode while their container is open


def origin(container: Any) -> float:
    """Seconds at which the container's clock starts; decoded media count from there."""
    return (container.start_time or 0) * MICROSECOND


def survey(container: Any, stream: Any, name: str, limits: MediaLimits) -> Track:
    """Read every packet of a file.

    Raises:
        MediaError: it is longer than allowed, shorter than it says, has a hole, or holds nothing.
    """
    claimed, packets, last = _claimed(container, stream), [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        last = max(last, *_span(container, packet))
        if packet.stream is stream:
            packets.append(packet)
    spans = [_span(container, p) for p in packets if not p.is_discard and p.pts is not None]
    if not spans:
        held = f"{MISSING[stream.type]} with a packet that is shown" if packets else EMPTY[stream.type]
        raise MediaError(f"{name}: got {held}; remove its row")
    times, end = sorted(start for start, _ in spans), max(end for _, end in spans)
    least = 0.0 if _guessed(stream, packets, claimed) else within(claimed, name, limits)
    promised = (
        0 if stream.codec_context.name.startswith("pcm_") else stream.frames
    )  # AIFF counts samples there
    there = last if stream.duration is None else end
    if len(packets) + 1 < 0.98 * promised or there < 0.95 * least - 0.1:
        raise _torn(
            name,
            stream.type,
            f"its header promises {stream.frames or 'unnumbered'} packets in {claimed:.2f} s, the file holds "
            f"{len(packets)} in {there:.2f} s",
        )
    hole = _hole(times) if container.format.name == "mpegts" else None
    if hole is not None:
        raise _torn(name, stream.type, f"it holds nothing from {hole[0]:.2f} to {hole[1]:.2f} s")
    damaged = next((i for i, p in enumerate(packets, 1) if p.is_corrupt), None)
    if damaged is not None:
        raise _torn(name, stream.type, f"its packet {damaged} of {len(packets)} is cut or damaged")
    within(end, name, limits)
    plain = len(times) == len(packets) == len(set(times))
    return Track(np.array(times), end, plain, tuple(packets))


def _hole(times: Sequence[float]) -> tuple[float, float] | None:
    """The longest time without a packet in MPEG-TS, where neither its standard nor the film's own steps allow it."""
    steps = np.diff(times)
    if not len(steps) or steps.max() <= max(TS_GAP, 3 * float(np.median(steps))):
        return None
    at = int(steps.argmax())
    return times[at], times[at + 1]


def _span(container: Any, packet: Any) -> tuple[float, float]:
    """Seconds on the container's clock from which to which a packet lasts."""
    tick, start = float(packet.time_base), packet.pts or 0
    zero = origin(container)
    return start * tick - zero, (start + (packet.duration or 0)) * tick - zero


def _claimed(container: Any, stream: Any) -> float:
    """Seconds that the header tells, 0 where it tells none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) * MICROSECOND


def _guessed(stream: Any, packets: Sequence[Any], claimed: float) -> bool:
    """Whether a length is only what the file's bytes last at the bit rate of its beginning.

    So FFmpeg guesses where no header tells one (ADTS, MP3 without Xing's): then no byte is missing, and a quiet
    beginning makes hours of minutes.
    """
    seconds = 8 * sum(p.size for p in packets) / stream.bit_rate if stream.bit_rate else 0.0
    return abs(seconds - claimed) <= 0.02 * claimed


def within(seconds: float, name: str, limits: MediaLimits) -> float:
    """`seconds` if a medium may be so long.

    Raises:
        MediaError: it may not.
    """
    if not seconds <= limits.max_media_seconds:
        raise MediaError(
            f"{name}: got {seconds:.1f} s; allowed are {limits.max_media_seconds:g} (max_media_seconds): cut it, or "
            "raise the bound"
        )
    return seconds
