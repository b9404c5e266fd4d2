"""Media inside the page, as data URIs: read by the code that training uses, within bounds, with the gold evidence."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from mmreason.data.media import MediaError, MediaLimits, decode, read_bytes
from mmreason.report.words import size
from mmreason.types import DecodedMedium, MediumRef

LONGEST_SIDE = 640  # pixels; larger pictures are scaled down
PIXELATED_BELOW = 256  # smaller ones are magnified without blur
MOST_MEDIA = 64  # inside one page
MOST_BYTES = 12 * 10**6  # of all of them together
MOST_FILE = 2 * 10**6  # of one video or sound
NEAR = 0.35  # seconds around its moment during which a box is shown over a video
WAVE_BINS = 160


@dataclass(frozen=True)
class Box:
    """Gold evidence in the original picture's pixels; of a video at the moment `t` (seconds)."""

    x: float
    y: float
    width: float
    height: float
    label: str
    t: float | None = None
    shown: bool = True  # before the video is played


@dataclass(frozen=True)
class Mark:
    """Gold evidence in time, seconds. A moment has no length."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class View:
    """One medium as the page shows it; a video whose sound the row names too is one view.

    `uri` is empty where the page does not hold it; `note` (and `problem`, where nothing at all can be shown) says why.
    """

    kind: str
    uri: str = ""
    width: int = 0
    height: int = 0
    boxes: tuple[Box, ...] = ()
    problem: str = ""
    note: str = ""
    poster: str = ""  # of a video: the frame near its first evidence
    poster_time: float = 0.0
    seconds: float = 0.0
    marks: tuple[Mark, ...] = ()
    wave: str = ""  # the path of the sound's outline, WAVE_BINS wide, 40 high
    sound: bool = False

    @property
    def pixelated(self) -> bool:
        """Whether magnification should keep hard pixels."""
        return max(self.width, self.height) < PIXELATED_BELOW


class Album:
    """Hands out views until the page is full; `left_out` counts what then stayed out of it.

    Example: `Album(limits).views(row.media, row.evidence)`.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        # more frames than a model takes, so that one lies near each piece of evidence
        self._closely = replace(limits, fps=8.0, max_frames=32, max_video_pixels=2 * limits.max_video_pixels)
        self.left_out = 0
        self._media = self._bytes = 0
        self._pictures: dict[tuple[str, str], View] = {}

    def views(
        self, media: Sequence[Mapping[str, Any]], evidence: Sequence[Mapping[str, Any]] = ()
    ) -> list[View]:
        """A view for each medium; evidence without a `medium` index belongs to the first."""
        out, done = [], -1
        for i, medium in enumerate(media):
            if i <= done:
                continue
            done = i + 1 if i + 1 < len(media) and _is_sound_of(media[i + 1], medium) else i
            own = [e for e in evidence if i <= e.get("medium", 0) <= done]
            out.append(self._view(medium, own, sound=done > i))
        return out

    def _view(self, medium: Mapping[str, Any], evidence: list[Mapping[str, Any]], *, sound: bool) -> View:
        kind, path, root = (str(medium.get(key, "")) for key in ("kind", "path", "root"))
        if not path:
            return View(kind, problem="the row held it as bytes; the run does not keep a copy")
        if self._media >= MOST_MEDIA or self._bytes >= MOST_BYTES:
            self.left_out += 1
            return View(kind, problem="the page is full; the file is " + path)
        self._media += 1
        try:
            if kind == "image":
                view = self._picture(path, root)
                view = replace(view, boxes=tuple(_boxes(evidence, None)))
            elif kind == "video":
                view = self._film(path, root, evidence, sound=sound)
            else:
                view = self._recording(path, root, evidence)
        except MediaError as error:  # the run may have moved away from its data: the page says so and goes on
            return View(kind, problem=str(error))
        self._bytes += len(view.uri) + len(view.poster)
        return view

    def _picture(self, path: str, root: str) -> View:
        if (path, root) not in self._pictures:
            image = decode(MediumRef("image", path, root=root), self.limits).image
            assert image is not None
            self._pictures[path, root] = View("image", data_uri(image), *image.size)
        return self._pictures[path, root]

    def _film(self, path: str, root: str, evidence: list[Mapping[str, Any]], *, sound: bool) -> View:
        film = decode(MediumRef("video", path, root=root), self._closely)
        heard = decode(MediumRef("audio", path, root=root), self.limits) if sound else None
        assert film.frames is not None and film.timestamps is not None
        moments = [float(e["t"]) for e in evidence if "t" in e]
        wanted = moments[0] if moments else float(film.timestamps.mean())
        shown = int(np.abs(film.timestamps - wanted).argmin())
        now = float(film.timestamps[shown])
        seconds = (film.total_frames or len(film.frames)) / (film.video_fps or 1.0)
        uri, note = self._file(MediumRef("video", path, root=root))
        return View(
            kind="video",
            uri=uri,
            width=film.frames.shape[2],
            height=film.frames.shape[1],
            boxes=tuple(_boxes(evidence, now)),
            note=f"{note}; this is the frame at {now:.1f} s" if note else "",
            poster=data_uri(Image.fromarray(film.frames[shown])),
            poster_time=now,
            seconds=max(seconds, _seconds(heard)),
            marks=tuple(_marks(evidence)),
            wave=outline(heard.waveform) if heard is not None and heard.waveform is not None else "",
            sound=sound,
        )

    def _recording(self, path: str, root: str, evidence: list[Mapping[str, Any]]) -> View:
        heard = decode(MediumRef("audio", path, root=root), self.limits)
        assert heard.waveform is not None
        uri, note = self._file(MediumRef("audio", path, root=root))
        return View(
            kind="audio",
            uri=uri,
            note=note,
            seconds=_seconds(heard),
            marks=tuple(_marks(evidence)),
            wave=outline(heard.waveform),
            sound=True,
        )

    def _file(self, ref: MediumRef) -> tuple[str, str]:
        """(data URI, ""), or ("", why it stayed out)."""
        data = read_bytes(ref, self.limits)
        mime = mime_of(data, ref.kind)
        if mime is None:
            return "", "browsers do not play this kind of file"
        if len(data) > MOST_FILE or self._bytes + len(data) * 4 / 3 > MOST_BYTES:
            self.left_out += 1
            return "", f"its {size(len(data))} stayed out of this page"
        return f"data:{mime};base64,{base64.b64encode(data).decode()}", ""


def data_uri(image: Image.Image) -> str:
    """A PNG (a JPEG for photographs, whichever is smaller) of at most LONGEST_SIDE pixels a side."""
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    encoded = {}
    for mime, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        small.convert("RGB").save(buffer, mime, **options)
        encoded[mime] = buffer.getvalue()
    # Flat drawings keep their sharp edges unless the JPEG is much smaller.
    best = "jpeg" if len(encoded["jpeg"]) * 3 < len(encoded["png"]) else "png"
    return f"data:image/{best};base64,{base64.b64encode(encoded[best]).decode()}"


def mime_of(data: bytes, kind: str) -> str | None:
    """What a browser must be told to play the file; None for files that browsers do not play."""
    if data[4:8] == b"ftyp":
        return f"{kind}/mp4"
    if data[:4] == b"\x1aE\xdf\xa3":
        return f"{kind}/webm"
    if data[:4] == b"OggS":
        return f"{kind}/ogg"
    if kind == "audio":
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return "audio/wav"
        if data[:4] == b"fLaC":
            return "audio/flac"
        if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
            return "audio/mpeg"
    return None


def outline(wave: np.ndarray) -> str:
    """The sound's largest swing in each of WAVE_BINS equal parts, as an SVG path; the loudest fills the height.

    Example: silence is a line in the middle.
    """
    parts = np.array_split(np.abs(wave), min(WAVE_BINS, len(wave)))
    peaks = np.array([part.max() for part in parts])
    heights = 19.0 * peaks / max(float(peaks.max()), 1e-4) + 0.4
    step = WAVE_BINS / len(peaks)
    points = [(i * step, h) for i, h in enumerate(heights)] + [(float(WAVE_BINS), float(heights[-1]))]
    over = "L".join(f"{x:.1f} {20 - h:.1f}" for x, h in points)
    under = "L".join(f"{x:.1f} {20 + h:.1f}" for x, h in reversed(points))
    return f"M{over}L{under}Z"


def _is_sound_of(medium: Mapping[str, Any], film: Mapping[str, Any]) -> bool:
    """Whether a row's medium is the sound track of the video before it."""
    same = all(medium.get(key) == film.get(key) for key in ("path", "root"))
    return (film.get("kind"), medium.get("kind")) == ("video", "audio") and same


def _boxes(evidence: Sequence[Mapping[str, Any]], now: float | None) -> list[Box]:
    out = []
    for e in evidence:
        if len(e.get("box", ())) == 4:
            x0, y0, x1, y1 = (float(v) for v in e["box"])
            t = None if now is None or "t" not in e else float(e["t"])
            near = t is None or now is None or abs(t - now) <= NEAR
            out.append(Box(x0, y0, x1 - x0, y1 - y0, str(e.get("label", "")), t, near))
    return out


def _marks(evidence: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Spans, and the moments of boxes that no span of the same label holds; in time order."""
    spans = [
        Mark(float(e["span"][0]), float(e["span"][1]), str(e.get("label", "")))
        for e in evidence
        if len(e.get("span", ())) == 2
    ]
    moments = [Mark(float(e["t"]), float(e["t"]), str(e.get("label", ""))) for e in evidence if "t" in e]
    free = [m for m in moments if not any(s.label == m.label and s.start <= m.start <= s.end for s in spans)]
    return sorted([*spans, *free], key=lambda m: (m.start, m.end))


def _seconds(heard: DecodedMedium | None) -> float:
    if heard is None or heard.waveform is None or not heard.sampling_rate:
        return 0.0
    return len(heard.waveform) / heard.sampling_rate
