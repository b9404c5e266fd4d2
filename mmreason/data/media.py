"""Decoding media named by rows: confined to the data root, bounded before decoding, never fetched from the net.

A path is `picture.png`, `folder/picture.png`, or `archive.zip#member.png`; a row may hold the bytes instead.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mmreason.types import DecodedMedium, MediumRef

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no format that runs a program, as EPS does
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|.*base64,)|data:", re.DOTALL)
_ARCHIVE = re.compile(r"(.+\.zip)#(.+)", re.DOTALL | re.IGNORECASE)


class MediaError(ValueError):
    """A medium that cannot be read, or must not be."""


@dataclass(frozen=True)
class MediaLimits:
    """What a medium may cost. Its file and its header are checked before anything is decoded.

    `min_pixels` and `max_pixels` refuse nothing: they travel with the picture to processors that resize freely.

    Example: `MediaLimits(max_image_pixels=4096 * 4096)`.
    """

    max_image_pixels: int = 16_777_216
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_file_bytes: int = 256 * 2**20


def decode(ref: MediumRef, limits: MediaLimits) -> DecodedMedium:
    """The medium as the processor gets it: pictures upright (EXIF) and RGB, transparency over white.

    Raises:
        MediaError: the path leaves the root, or the file is missing, too large, truncated or no picture.
    """
    image, name = _open(ref, limits)
    with _decoder(name, limits):
        upright = _rgb(ImageOps.exif_transpose(image))
    return DecodedMedium(
        "image", name, image=upright, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels
    )


def check(ref: MediumRef, limits: MediaLimits) -> tuple[int, int]:
    """Width and height from the header alone; raises as `decode` for everything the header tells."""
    image, _ = _open(ref, limits)
    return image.size


def _open(ref: MediumRef, limits: MediaLimits) -> tuple[Image.Image, str]:
    """The picture, its header read and its size allowed, not yet decoded."""
    name = ref.path or "inline bytes"
    if ref.kind != "image":
        raise MediaError(f"{name}: mmreason decodes images in this version; got {ref.kind}")
    data = read_bytes(ref, limits)
    with _decoder(name, limits), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound follows
        image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise MediaError(
            f"{name}: got {width} x {height} = {width * height} pixels; allowed are {limits.max_image_pixels} "
            "(max_image_pixels): shrink the picture or raise the bound"
        )
    return image, name


@contextmanager
def _decoder(name: str, limits: MediaLimits) -> Iterator[None]:
    """Around Pillow's work: whatever a file makes it raise is a MediaError with the medium's name."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"{name}: {error}; allowed are {limits.max_image_pixels} pixels (max_image_pixels) and what Pillow's own "
            "bound lets through: shrink the picture"
        ) from error
    except Exception as error:  # a broken file may raise anything in a decoder
        why = "it is none to Pillow" if isinstance(error, UnidentifiedImageError) else error
        raise MediaError(
            f"{name}: the picture cannot be read ({why}); allowed are whole files of {', '.join(IMAGE_FORMATS)}: "
            "repair it or remove its row"
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


def read_bytes(ref: MediumRef, limits: MediaLimits) -> bytes:
    """The file's bytes, from the row itself, a file under the root, or a member of an archive under the root."""
    if ref.content is not None:
        _bound(ref.path or "inline bytes", len(ref.content), limits)
        return ref.content
    archive = _ARCHIVE.fullmatch(ref.path)
    if archive is None:
        path = locate(ref.path, ref.root)
        _bound(ref.path, path.stat().st_size, limits)
        return path.read_bytes()
    path = locate(archive[1], ref.root)
    status = path.stat()
    try:
        members = _archive(str(path), status.st_mtime_ns, status.st_size, os.getpid())
        info = members.getinfo(archive[2])
        _bound(ref.path, info.file_size, limits)
        return members.read(info)
    except KeyError as error:
        raise MediaError(f"{ref.path}: {archive[1]} has no member {archive[2]!r}") from error
    except (
        zipfile.BadZipFile,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:  # torn, encrypted ...
        raise MediaError(f"{ref.path}: the archive cannot be read ({error})") from error


def locate(path: str, root: str) -> Path:
    """The real file behind `path`, which must lie inside the real `root`: no `..`, absolute path or link leads out.

    Raises:
        MediaError: it leads out, is a URL, or is not there.
    """
    if _SCHEME.match(path):
        raise MediaError(
            f"{path[:80]}: got a URL; media are never fetched: save the file under the data root {root!r}"
        )
    if not path or "\0" in path:
        raise MediaError(f"{path!r}: no path of a file")
    base = Path(os.path.realpath(root))
    real = Path(os.path.realpath(base / path))
    if not real.is_relative_to(base):
        raise MediaError(
            f"{path}: leads outside the data root {root!r}; put the file there, or set media_root in the recipe"
        )
    if not real.is_file():
        raise MediaError(
            f"{path}: no such file under the data root {root!r}; correct the path, or set media_root"
        )
    return real


@lru_cache(maxsize=16)
def _archive(path: str, mtime: int, size: int, process: int) -> zipfile.ZipFile:
    """An open archive: its directory is read once. A changed file, or a forked process, opens it anew."""
    return zipfile.ZipFile(path)


def _bound(name: str, size: int, limits: MediaLimits) -> None:
    if size > limits.max_file_bytes:
        raise MediaError(f"{name}: got {size} bytes; allowed are {limits.max_file_bytes}: shrink the file")
