"""What a tool is: a named function over the source media that the model may call while it reasons.

A tool package imports this module and nothing else of mmreason. Decoding stays in the core: a tool asks its
`ToolContext` for frames, sound or a picture, and the context bounds how much it may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

Span = tuple[float, float]  # seconds
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height


@dataclass(frozen=True)
class ToolCall:
    """One call as the model wrote it.

    Example: `ToolCall("zoom_image", {"medium": 0, "box": [0.5, 0.0, 1.0, 0.5]})`.
    """

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ToolResult:
    """What goes back into the conversation: text, and media the model has not seen yet.

    A call that could not be carried out is a result too: `ok` is False and `text` says what was wrong and what
    is allowed, so that the model can try again.

    Example: `ToolResult("the upper right quarter", images=(crop,))`.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    frames: np.ndarray | None = None  # uint8 [F, H, W, 3]
    timestamps: np.ndarray | None = None  # float64 [F], seconds
    waveform: np.ndarray | None = None  # float32 [S], mono, -1..1
    sampling_rate: int | None = None  # Hz
    ok: bool = True


class ToolContext(Protocol):
    """The media of the question at hand, decoded by the core within its limits."""

    def image(self, medium: int, *, box: Box | None = None, max_pixels: int | None = None) -> Image.Image:
        """The picture `medium` of the question, cropped to `box`, at most `max_pixels` large."""
        ...

    def frames(
        self, medium: int, *, span: Span | None = None, fps: float, max_frames: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the video `medium` (uint8 [F, H, W, 3]) and their times in seconds (float64 [F])."""
        ...

    def audio(self, medium: int, *, span: Span | None = None, sampling_rate: int) -> np.ndarray:
        """The sound of `medium` (float32 [S], mono), also where the medium is a video with a sound track."""
        ...


class Tool(Protocol):
    """A tool. `schema` is the JSON schema of its arguments, as the chat template shows it to the model."""

    name: str
    description: str
    schema: Mapping[str, Any]

    def __call__(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Carry out the call. Wrong arguments give a result with `ok=False`, never an exception."""
        ...
