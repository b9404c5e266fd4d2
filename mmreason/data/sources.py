"""Rows of JSONL and parquet files, and of procedural worlds, as Samples. Nothing is dropped: wrong rows are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmreason.data.media import MediaError, MediaLimits, check
from mmreason.data.rows import RowError, parse_row
from mmreason.data.worlds import make_world, read_settings, world_settings
from mmreason.schema import SourceConfig
from mmreason.types import Sample

__all__ = ["RowError", "check_source", "load_rows", "parse_row"]

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


def check_source(name: str, cfg: SourceConfig, folder: Path, limits: MediaLimits | None = None) -> list[str]:
    """Every problem of a source's rows, one line each; with `limits`, of the headers of its media files too."""
    try:
        samples, problems = _read(name, cfg, folder)
    except RowError as error:
        return [str(error)]
    if limits is None:
        return problems
    seen: set[tuple[str, str]] = set()
    for sample in samples:
        for ref in sample.media:
            if ref.content is None and (ref.kind, ref.path) in seen:
                continue
            seen.add((ref.kind, ref.path))
            try:
                check(ref, limits)
            except MediaError as error:
                problems.append(f"data.{name}, row {sample.id}: {error}")
    return problems


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
    for line, row in _rows(path, name):
        if cfg.limit is not None and len(samples) + len(problems) >= cfg.limit:
            break
        try:
            sample = parse_row(row, source=name, line=line, root=root)
        except RowError as error:
            problems.append(str(error))
            continue
        if sample.id in lines:
            problems.append(
                f"data.{name}, row {line}: id {sample.id!r} is row {lines[sample.id]}'s too; ids must differ"
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
    }
    assert cfg.world is not None
    try:
        if read_settings(folder) == world_settings(cfg.world, **settings):
            return folder / "rows.jsonl"
        return make_world(cfg.world, folder, **settings)
    except ValueError as error:
        raise RowError(f"data.{name}: {error}") from error


def _rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, row) of a file; a line that is no JSON comes as the RowError that says so."""
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
