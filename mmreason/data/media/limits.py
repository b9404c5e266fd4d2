"""What a medium may cost, and the error of one that cannot be read or must not be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mmreason.schema import Recipe


class MediaError(ValueError):
    """A medium that cannot be read, or must not be."""


@dataclass(frozen=True)
class MediaLimits:
    """What a medium may cost and how it is sampled. Its file and its header are checked before anything is decoded.

    `min_pixels` and `max_pixels` refuse nothing: they travel with the medium to processors that resize freely.

    Example: `MediaLimits(max_image_pixels=4096 * 4096)`.
    """

    max_image_pixels: int = 16_777_216
    max_video_pixels: int = 134_217_728  # frames that are kept x width x height
    max_media_seconds: float = 600.0
    max_decode_seconds: float = 60.0  # that decoding one medium may take
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float = 2.0  # frames kept of a second of video
    max_frames: int = 16
    sampling_rate: int = 16_000  # Hz of decoded sound
    max_file_bytes: int = 256 * 2**20


def limits_of(recipe: Recipe | None = None, processor: Any = None) -> MediaLimits:
    """The limits of a recipe for the model whose processor is given; the recipe decides where both do.

    Example: `limits_of(processor=processor).sampling_rate` is what its audio encoders want.
    """
    limits = MediaLimits()
    extractor = getattr(processor, "feature_extractor", processor)
    own = {
        "fps": getattr(processor, "fps", None),
        "max_frames": getattr(processor, "max_frames", None),
        "sampling_rate": getattr(extractor, "sampling_rate", None),
    }
    if recipe is not None:
        asked = {key: getattr(recipe.model, key) for key in ("fps", "max_frames", "min_pixels", "max_pixels")}
        bounds = {
            key: getattr(recipe, key)
            for key in ("max_image_pixels", "max_video_pixels", "max_media_seconds", "max_decode_seconds")
        }
        own |= {key: value for key, value in (asked | bounds).items() if value is not None}
    return replace(limits, **{key: value for key, value in own.items() if value is not None})


@contextmanager
def reading(name: str, kind: str, allowed: str) -> Iterator[None]:
    """Around a decoder's work: whatever a file makes it raise is a MediaError with the medium's name.

    Example: `with reading("a.png", "picture", "whole files of PNG"): ...`.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # a broken file may raise anything in a decoder
        why = getattr(error, "strerror", None) or error  # of FFmpeg's: without their numbers
        raise MediaError(
            f"{name}: the {kind} cannot be read ({why}); allowed are {allowed}: repair it or remove its row"
        ) from error
