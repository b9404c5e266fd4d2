"""Procedural worlds: real media files with exact ground truth, many rows in few files.

`make_world("image", folder, count=1000, seed=0, split="train")` writes `rows.jsonl`, `images-000.zip` ...
(stored, not compressed) and `world.json`, the settings that made them. A new world is an entry of `WORLDS`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmreason.data.worlds import audio, av, image, spoken, video, words
from mmreason.data.worlds.rows import (
    OPTION_STYLES,
    SPEAKERS,
    SPLITS,
    SceneItem,
    World,
    WorldSettings,
    build_row,
)
from mmreason.types import MediaKind

__all__ = ["WORLDS", "group_of", "make_world", "read_settings", "world_settings"]

WORLDS: dict[str, World] = {
    w.name: w for w in (image.WORLD, audio.WORLD, video.WORLD, av.WORLD, spoken.WORLD, words.WORLD)
}
FILES_PER_SHARD = 4096
SHARD_NAMES: dict[MediaKind, str] = {"image": "images", "video": "videos", "audio": "audios"}
ROWS, SETTINGS = "rows.jsonl", "world.json"


def group_of(world: str, kind: str) -> str:
    """The group of kinds that a world's kind of question is in: "primitive", "compositional"; "" where none knows it.

    Example: `group_of("image", "count")` is "primitive".
    """
    groups = WORLDS[world].groups if world in WORLDS else {}
    return next((name for name, kinds in groups.items() if kind in kinds), "")


def _expand(world: World, kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds and groups of kinds -> kinds in the world's own order; none asked for means all."""
    unknown = [k for k in kinds if k not in world.kinds and k not in world.groups]
    if unknown:
        allowed = f"kinds {', '.join(world.kinds)} and groups {', '.join(world.groups)}"
        raise ValueError(f"world {world.name}: unknown kinds {unknown}; allowed are the {allowed}")
    wanted = {k for name in kinds for k in world.groups.get(name, (name,))}
    return tuple(k for k in world.kinds if not wanted or k in wanted)


def world_settings(
    name: str,
    *,
    count: int,
    seed: int,
    split: str,
    options: str = "named",
    kinds: Sequence[str] = (),
    difficulty: tuple[float, float] = (0.0, 1.0),
    rationale: bool = True,
    recordings: str | None = None,
    speaker: str = "known",
) -> WorldSettings:
    """The checked settings of a world; equal settings mean equal files.

    Raises ValueError naming the setting, what was got and what is allowed.
    """
    if name not in WORLDS:
        raise ValueError(f"unknown world {name!r}; allowed are {', '.join(WORLDS)}")
    low, high = difficulty
    for what, got, fine, allowed in (
        ("split", split, split in SPLITS, f"one of {', '.join(SPLITS)}"),
        ("options", options, options in OPTION_STYLES, f"one of {', '.join(OPTION_STYLES)}"),
        ("count", count, count >= 1, "at least 1"),
        ("speaker", speaker, speaker in SPEAKERS, f"one of {', '.join(SPEAKERS)}"),
        ("difficulty", tuple(difficulty), 0 <= low <= high <= 1, "two numbers, 0 <= low <= high <= 1"),
    ):
        if not fine:
            raise ValueError(f"world {name}: {what} is {got!r}; allowed is {allowed}")
    world = WORLDS[name]
    if world.locate is None and (recordings is not None or speaker != "known"):
        raise ValueError(
            f"world {name}: got recordings {recordings!r} and speaker {speaker!r}, but it makes all its media itself; "
            "leave both out"
        )
    folder = "" if world.locate is None else world.locate(recordings)
    spread = (float(low), float(high))
    return WorldSettings(
        name,
        world.version,
        count,
        seed,
        split,
        options,
        _expand(world, kinds),
        spread,
        rationale,
        folder,
        speaker,
    )


def read_settings(folder: Path) -> WorldSettings | None:
    """The settings that made a complete world folder, or None. Equal to `world_settings(...)` means reuse."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.keys() != WorldSettings.__dataclass_fields__.keys():
        return None
    return WorldSettings(
        **stored | {"kinds": tuple(stored["kinds"]), "difficulty": tuple(stored["difficulty"])}
    )


class _Shards:
    """Media of one world, appended to stored zip files of at most FILES_PER_SHARD members per kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: dict[MediaKind, int] = {}
        self._open: dict[MediaKind, zipfile.ZipFile] = {}

    def add(self, kind: MediaKind, extension: str, content: bytes) -> dict[str, str]:
        """Store one file; returns the typed part that names it."""
        number = self._counts.get(kind, 0)
        shard = f"{SHARD_NAMES[kind]}-{number // FILES_PER_SHARD:03d}.zip"
        if number % FILES_PER_SHARD == 0:
            if kind in self._open:
                self._open[kind].close()
            self._open[kind] = zipfile.ZipFile(self._folder / shard, "w", zipfile.ZIP_STORED)
        member = f"{number:06d}.{extension}"
        self._open[kind].writestr(zipfile.ZipInfo(member), content)  # a fixed date: the same bytes every time
        self._counts[kind] = number + 1
        return {"type": kind, kind: f"{shard}#{member}"}

    def close(self) -> None:
        for archive in self._open.values():
            archive.close()


def _rows_of(item: SceneItem, shards: _Shards, settings: WorldSettings) -> list[dict[str, Any]]:
    refs: list[dict[str, str]] = []
    for i, (kind, extension, content) in enumerate(item.media):
        if i and content is item.media[i - 1][2]:  # the sound track of the video before: one file, two media
            refs.append({"type": kind, kind: refs[-1][refs[-1]["type"]]})
        else:
            refs.append(shards.add(kind, extension, content))
    return [build_row(q, i, item, refs, settings) for i, q in enumerate(item.questions)]


def _write(folder: Path, settings: WorldSettings) -> None:
    items = WORLDS[settings.world].scenes(settings)
    with closing(_Shards(folder)) as shards, (folder / ROWS).open("w", encoding="utf-8") as file:
        rows = (row for item in items for row in _rows_of(item, shards, settings))
        file.writelines(json.dumps(row) + "\n" for row in islice(rows, settings.count))
    (folder / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")


def make_world(
    name: str,
    out: Path,
    *,
    count: int,
    seed: int,
    split: str,
    options: str = "named",
    kinds: Sequence[str] = (),
    difficulty: tuple[float, float] = (0.0, 1.0),
    rationale: bool = True,
    recordings: str | None = None,
    speaker: str = "known",
) -> Path:
    """Make `count` rows (about four to a scene) under `out`, and return the path of `rows.jsonl`.

    The folder is written beside and renamed into place, so it is complete or absent; an older world there is
    replaced, a folder that holds anything else is refused. `kinds` takes kinds and groups ("primitive",
    "compositional"), `recordings` a folder for worlds made of recordings, and `speaker` whose of them; a longer world
    of the same settings begins with the rows of the shorter one.
    """
    settings = world_settings(
        name,
        count=count,
        seed=seed,
        split=split,
        options=options,
        kinds=kinds,
        difficulty=difficulty,
        rationale=rationale,
        recordings=recordings,
        speaker=speaker,
    )
    out = Path(out)
    if out.exists() and not (out.is_dir() and ((out / SETTINGS).is_file() or not any(out.iterdir()))):
        raise ValueError(f"world {name}: {out} exists and is not a world; choose an empty or new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.part-") as beside:
        made = Path(beside) / "world"
        made.mkdir()
        _write(made, settings)
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return out / ROWS
