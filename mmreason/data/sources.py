"""Rows of JSONL and parquet files, and of procedural worlds, as Samples. Nothing is dropped: wrong rows are named."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmreason.data.row_error import RowError
from mmreason.data.rows import parse_row
from mmreason.data.worlds import make_world, read_settings, world_settings
from mmreason.schema import SourceConfig
from mmreason.types import Sample

__all__ = ["RowError", "check_rows", "load_rows", "parse_row"]

SUFFIXES = (".jsonl", ".parquet")
SHOWN = 20  # problems shown in one message


def load_rows(name: str, cfg: SourceConfig, folder: Path) -> list[Sample]:
    """All rows of a source (at most `cfg.limit`); a world is made in `folder` unless the same one lies there.

    Raises:
        RowError: a missing or wrong file, or wrong rows (up to SHOWN of them are listed); nothing is dropped.
    """
    samples, problems = _read(name, cfg, folder)
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise RowError("\n  ".join(problems[:SHOWN]) + more)
    return samples


def check_rows(name: str, cfg: SourceConfig, folder: Path) -> tuple[list[Sample], list[str]]:
    """The rows of a source that are right, and every problem of the others, one line each."""
    try:
        return _read(name, cfg, folder)
    except RowError as error:
        return [], [str(error)]


def _read(name: str, cfg: SourceConfig, folder: Path) -> tuple[list[Sample], list[str]]:
    path = _world(name, cfg, folder) if cfg.world is not None else Path(cfg.path or "")
    if path.suffix not in SUFFIXES:
        raise RowError(
            f"data.{name}.path: got {str(path)!r}; rows are read from {' and '.join(SUFFIXES)} files"
        )
    if not path.is_file():
        raise RowError(f"data.{name}.path: {str(path)!r} is not there; give a file of rows")
    root = str(cfg.media_root or path.parent)
    samples: list[Sample] = []
    problems: list[str] = []
    lines: dict[str, int] = {}
    for line, row in islice(_rows(path, name), cfg.limit):
        try:
            sample = parse_row(row, source=name, line=line, root=root)
        except RowError as error:
            problems += error.problems
            continue
        if sample.id in lines:
            problems.append(
                f"data.{name}, row {sample.id}: lines {lines[sample.id]} and {line} have this id; ids must differ"
            )
            continue
        lines[sample.id] = line
        samples.append(sample)
    if not samples and not problems:
        raise RowError(f"data.{name}.path: {str(path)!r} has no rows; give a file with at least one")
    return samples, problems


def _world(name: str, cfg: SourceConfig, folder: Path) -> Path:
    """`rows.jsonl` of the world, made when it is not there as the recipe wants it."""
    settings: dict[str, Any] = {
        "count": cfg.count,
        "seed": cfg.seed,
        "split": cfg.split,
        "options": cfg.options,
        "kinds": cfg.kinds,
        "difficulty": cfg.difficulty,
        "rationale": cfg.rationale,
        "recordings": cfg.recordings,
        "speaker": cfg.speaker,
    }
    assert cfg.world is not None
    try:
        if read_settings(folder) == world_settings(cfg.world, **settings):
            return folder / "rows.jsonl"
        return make_world(cfg.world, folder, **settings)
    except ValueError as error:
        raise RowError(f"data.{name}: {error}") from error


def _rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, row) of a file; a row of JSONL is still text.

    Raises:
        RowError: the file is no parquet, or no text in UTF-8.
    """
    try:
        yield from _lines(path)
    except (OSError, ValueError) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise RowError(
            f"data.{name}.path: {str(path)!r} cannot be read as {path.suffix} ({error}); write it again"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet  # here: only those who have parquet files pay for it

        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
