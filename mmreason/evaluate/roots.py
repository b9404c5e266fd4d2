"""Where a run's media lie. Stored answers name a data source, and one file of the run says where its media are.

So a run may be moved or copied together with what it made, and media that were moved are found again by correcting one
line of `media_roots.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "media_roots.json"


def roots_of(run_dir: Path, roots: Mapping[str, str]) -> dict[str, str]:
    """What the file holds of source -> root: relative to the run where it lies inside, else absolute."""
    home = os.path.abspath(run_dir)
    out = {}
    for source, root in roots.items():
        path = os.path.abspath(root)
        inside = os.path.commonpath([home, path]) == home
        out[source] = Path(os.path.relpath(path, home)).as_posix() if inside else path
    return out


def read_roots(run_dir: Path) -> dict[str, str]:
    """Source -> absolute root of its media; empty for a run without the file."""
    path = run_dir / FILE
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {source: os.path.abspath(run_dir / root) for source, root in stored.items()}


def by_root(media: Sequence[Mapping[str, Any]], roots: Mapping[str, str]) -> list[dict[str, Any]]:
    """Media as they are stored: `root` is the name of the source it is the root of, `path` relative to it.

    A root that `roots` does not know stays as it is.

    Example: `{"kind": "image", "path": "1.png", "root": "/runs/x/data/train"}` is stored with root "train".
    """
    names = {root: source for source, root in reversed(list(roots.items()))}
    out = []
    for medium in media:
        root = os.path.abspath(medium["root"])
        path = str(medium["path"])
        if root in names:
            path = os.path.relpath(path, root) if os.path.isabs(path) else path
            out.append({**medium, "path": path, "root": names[root]})
        else:
            out.append(dict(medium))
    return out


def located(media: Sequence[Mapping[str, Any]], roots: Mapping[str, str]) -> list[dict[str, Any]]:
    """The inverse of `by_root`: `root` is a folder again."""
    return [{**medium, "root": roots.get(str(medium["root"]), medium["root"])} for medium in media]
