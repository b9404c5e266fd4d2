"""Pictures: bounded from their header, upright (EXIF), RGB of 8 bits, transparency over white."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

from mmreason.data.media.limits import MediaError, MediaLimits, reading

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no format that runs a program, as EPS does


def decode_image(data: bytes, name: str, limits: MediaLimits) -> Image.Image:
    """The picture as a model may see it.

    Raises:
        MediaError: too large, truncated or no picture.
    """
    image = open_image(data, name, limits)
    with _pillow(name, limits):
        return _rgb(ImageOps.exif_transpose(image))


def open_image(data: bytes, name: str, limits: MediaLimits) -> Image.Image:
    """The picture, its header read and its size allowed, not yet decoded."""
    with _pillow(name, limits), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound follows
        image = Image.open(BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name}: got {width} x {height} = {width * height} pixels; allowed are {limits.max_image_pixels} "
            "(max_image_pixels): shrink the picture or raise the bound"
        )
    return image


@contextmanager
def _pillow(name: str, limits: MediaLimits) -> Iterator[None]:
    """Around Pillow's work: its errors in our words."""
    with reading(name, "picture", f"whole files of {', '.join(FORMATS)}"):
        try:
            yield
        except UnidentifiedImageError as error:
            raise ValueError("it is none to Pillow") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(
                f"{name}: {error}; allowed are {limits.max_image_pixels} pixels (max_image_pixels) and what Pillow's "
                "own bound lets through: shrink the picture"
            ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB, 8 bits. Sixteen-bit greys are scaled (Pillow's own conversion would clip them to white)."""
    if image.mode.startswith("I;16"):
        return image.point(lambda value: value * (1 / 257), "F").convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"mode {image.mode}, {image.format}: values have no known range; save it with 8 or 16 bits"
        )
    if image.mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGB", layered.size, (255, 255, 255))
        paper.paste(layered, mask=layered.getchannel("A"))
        return paper
    image.load()
    return image.convert("RGB")
