"""The bytes of a medium: from its row, a file, or a member of an archive; confined to the data root, never fetched."""

from __future__ import annotations

import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path

from mmreason.data.media.limits import MediaError, MediaLimits
from mmreason.types import MediumRef

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|.*base64,)|data:", re.DOTALL)
_ARCHIVE = re.compile(r"(.+\.zip)#(.+)", re.DOTALL | re.IGNORECASE)


def read_bytes(ref: MediumRef, limits: MediaLimits) -> bytes:
    """The file's bytes, from the row itself, a file under the root, or a member of an archive under the root."""
    if ref.content is not None:
        _bound(ref.path or "inline bytes", len(ref.content), limits)
        return ref.content
    archive = _ARCHIVE.fullmatch(ref.path)
    if archive is None:
        path = locate(ref.path, ref.root)
        _bound(ref.path, path.stat().st_size, limits)
        try:
            return path.read_bytes()
        except OSError as error:  # no permission, or a disk that is gone
            raise MediaError(f"{ref.path}: the file cannot be read ({error})") from error
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
