"""What a video or sound file holds, read from its packets without decoding one: cheap, and safe on damaged files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import av
import numpy as np

from mmreason.data.media.limits import MediaError, MediaLimits

Kind = Literal["video", "audio"]
MISSING = {"video": "no video stream", "audio": "no sound track"}
MICROSECOND = 1e-6


@contextmanager
def opened(data: bytes, name: str, kind: Kind) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of this kind.

    Raises:
        MediaError: it has none.
    """
    with av.open(BytesIO(data), metadata_errors="ignore") as container:
        streams = getattr(container.streams, kind)
        if not streams:
            held = sorted({stream.type for stream in container.streams}) or ["nothing"]
            raise MediaError(
                f"{name}: got {MISSING[kind]}, only {', '.join(held)}; give a file with {kind}, or remove its row"
            )
        yield container, streams[0]


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
        MediaError: it is longer than allowed, shorter than it says, or holds nothing.
    """
    claimed = _claimed(container, stream, name, limits)
    packets, last = [], 0.0
    for packet in container.demux():
        if not packet.size:
            continue
        last = max(last, *_span(container, packet))
        if packet.stream is stream:
            packets.append(packet)
    spans = [_span(container, p) for p in packets if not p.is_discard and p.pts is not None]
    if not spans:
        raise MediaError(f"{name}: got {MISSING[stream.type]} with a packet that is shown; remove its row")
    times, end = sorted(start for start, _ in spans), max(end for _, end in spans)
    torn = any(p.is_corrupt for p in packets) or len(packets) + 1 < 0.98 * stream.frames
    there = last if stream.duration is None else end
    if torn or there < 0.95 * claimed - 0.1:
        raise MediaError(
            f"{name}: the {stream.type} is torn: its header promises {stream.frames or 'unnumbered'} packets in "
            f"{claimed:.2f} s, the file holds {len(packets)} in {there:.2f} s; get the whole file or remove its row"
        )
    within(end, name, limits)
    plain = len(times) == len(packets) == len(set(times))
    return Track(np.array(times), end, plain, tuple(packets))


def _span(container: Any, packet: Any) -> tuple[float, float]:
    """Seconds on the container's clock from which to which a packet lasts."""
    tick, start = float(packet.time_base), packet.pts or 0
    zero = origin(container)
    return start * tick - zero, (start + (packet.duration or 0)) * tick - zero


def _claimed(container: Any, stream: Any, name: str, limits: MediaLimits) -> float:
    """Seconds that the header tells, 0 where it tells none."""
    if stream.duration is not None:
        seconds = float(stream.duration * stream.time_base)
    else:
        seconds = (container.duration or 0) * MICROSECOND
    return within(seconds, name, limits)


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
