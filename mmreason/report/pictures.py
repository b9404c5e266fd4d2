"""Media inside the page: decoded by the same code that training uses, re-encoded small, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmreason.data.media import MediaError, MediaLimits, decode
from mmreason.types import MediumRef

LONGEST_SIDE = 640  # pixels; larger pictures are scaled down
PIXELATED_BELOW = 256  # smaller ones are magnified without blur


@dataclass(frozen=True)
class View:
    """One medium as the page shows it. `uri` is empty when it could not be read; `problem` then says why.

    Boxes are in the original picture's pixels: (x, y, width, height, label).
    """

    kind: str
    uri: str = ""
    width: int = 0
    height: int = 0
    boxes: list[tuple[float, float, float, float, str]] = field(default_factory=list)
    problem: str = ""

    @property
    def pixelated(self) -> bool:
        """Whether magnification should keep hard pixels."""
        return max(self.width, self.height) < PIXELATED_BELOW


class Album:
    """Decodes each medium once. Example: `Album(limits).views(row.media, row.evidence)`."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self._seen: dict[tuple[str, str, str], View] = {}

    def views(
        self, media: Sequence[Mapping[str, Any]], evidence: Sequence[Mapping[str, Any]] = ()
    ) -> list[View]:
        """A view for each medium; evidence without a `medium` index belongs to the first."""
        out = []
        for i, medium in enumerate(media):
            view = self._view(str(medium["kind"]), str(medium.get("path", "")), str(medium.get("root", ".")))
            boxes = [_box(e) for e in evidence if e.get("medium", 0) == i and len(e.get("box", ())) == 4]
            out.append(View(view.kind, view.uri, view.width, view.height, boxes, view.problem))
        return out

    def _view(self, kind: str, path: str, root: str) -> View:
        key = (kind, path, root)
        if key not in self._seen:
            self._seen[key] = self._read(kind, path, root)
        return self._seen[key]

    def _read(self, kind: str, path: str, root: str) -> View:
        if not path:
            return View(kind, problem="the row held it as bytes; the run does not keep a copy")
        if kind != "image":
            return View(kind, problem=f"{kind} is not shown in this report")
        try:
            decoded = decode(MediumRef("image", path, root=root), self.limits)
        except MediaError as error:  # the run may have moved away from its data: the page says so and goes on
            return View(kind, problem=str(error))
        assert decoded.image is not None
        return View(kind, data_uri(decoded.image), *decoded.image.size)


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


def _box(evidence: Mapping[str, Any]) -> tuple[float, float, float, float, str]:
    x0, y0, x1, y1 = (float(v) for v in evidence["box"])
    return x0, y0, x1 - x0, y1 - y0, str(evidence.get("label", ""))
