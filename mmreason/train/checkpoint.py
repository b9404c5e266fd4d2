"""Checkpoints: everything a run needs to go on, written beside and renamed into place, verified by hash.

A checkpoint is a Hugging Face folder (config, safetensors, processor) plus `optimizer.pt`, one `rank_R.json` and
`rank_R.safetensors` per process (random state, loader, sampler, gate, buffered rollouts), `trainer_state.json`, and
last `manifest.json` with the SHA-256 of every file. A folder whose manifest does not hold is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mmreason.model.save import save_model
from mmreason.train.distributed import Backend, shard
from mmreason.train.prepare import seed_everything
from mmreason.types import Rendered, TrainingSample

log = logging.getLogger(__name__)
_STREAMS = ("aggregation", "ce", "rl", "kl", "old_logprobs", "ref_logprobs", "sampling_logprobs")
_RENDERED = ("ids", "roles", "sampled", "token_types")


def save_checkpoint(
    folder: Path,
    *,
    model: Any,
    processor: Any,
    optimizer: torch.optim.Optimizer,
    shared: Mapping[str, Any],
    local: Mapping[str, Any],
    rows: Sequence[TrainingSample],
    backend: Backend,
    keep: int,
) -> None:
    """Write `folder` (named checkpoint-N) atomically and delete all but the newest `keep` complete ones."""
    beside = folder.with_name(f".{folder.name}.writing")
    if backend.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    backend.barrier()
    tensors, described = rows_to_tensors(rows)
    tensors["rng/torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, beside / f"rank_{backend.rank}.safetensors")
    state = {**local, "rows": described, "rng/python": _python_state(), "rng/numpy": _numpy_state()}
    (beside / f"rank_{backend.rank}.json").write_text(json.dumps(state))
    backend.save_optimizer(beside, optimizer)
    with backend.whole():
        if backend.is_main:
            save_model(model, processor, beside / "model", merge=False)
    backend.barrier()
    if backend.is_main:
        for path in (beside / "model").iterdir():
            path.rename(beside / path.name)
        (beside / "model").rmdir()
        (beside / "trainer_state.json").write_text(
            json.dumps({**shared, "world_size": backend.world_size}, indent=1)
        )
        manifest = {
            p.relative_to(beside).as_posix(): _sha256(p) for p in sorted(beside.rglob("*")) if p.is_file()
        }
        (beside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*beside.rglob("*"), beside]:
            _fsync(path)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        _fsync(folder.parent)
        _prune(folder, keep)
    backend.barrier()


def _prune(newest: Path, keep: int) -> None:
    """Keep `newest` and the `keep` - 1 before it. One with a higher number was damaged and passed over on resume."""
    folders = checkpoints(newest.parent)
    place = folders.index(newest) + 1
    for old in [*folders[: max(place - keep, 0)], *folders[place:]]:
        shutil.rmtree(old)


def checkpoints(run_dir: Path) -> list[Path]:
    """Folders named checkpoint-N, oldest first; any other name is not ours."""
    found = (path for path in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(found, key=number)


def number(folder: Path) -> int:
    """N of checkpoint-N."""
    return int(folder.name.rsplit("-", 1)[1])


def newest_complete(run_dir: Path) -> Path | None:
    """The newest checkpoint whose every file matches its manifest; damaged ones are named in the log."""
    for folder in reversed(checkpoints(run_dir)):
        problem = damage(folder)
        if problem is None:
            return folder
        log.warning("checkpoint %s is not used: %s", folder, problem)
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return "it has no manifest.json (the save did not finish)"
    try:
        hashes = json.loads(manifest.read_bytes())
    except ValueError:  # cut off or overwritten
        return "its manifest.json is no JSON"
    for name, expected in hashes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} does not match its SHA-256"
    return None


def load_state(folder: Path, backend: Backend) -> tuple[dict[str, Any], dict[str, Any], list[TrainingSample]]:
    """(shared state, this rank's state, buffered rows); restores this process's random generators.

    Where another number of processes wrote it, the rows are dealt out anew and the generators of all processes but the
    first begin anew: what is the same in all processes (loader, sampler, gate, the draws of rollouts) goes on.
    """
    shared = json.loads((folder / "trainer_state.json").read_text())
    wrote = shared["world_size"]
    if wrote == backend.world_size:
        return shared, *_load_rank(folder, backend.rank)
    log.warning(
        "%s was written by %d process(es) and goes on in %d: what all but the first draw from now on (dropout) is not "
        "what they would have drawn",
        *(folder, wrote, backend.world_size),
    )
    everyone = [_load_rank(folder, rank) for rank in reversed(range(wrote))][::-1]
    if not backend.is_main:  # which goes on by the first process's generators, restored last
        seed_everything(int(torch.randint(2**31, (1,))) + backend.rank)
    return shared, everyone[0][0], _dealt([rows for _, rows in everyone], backend)


def _load_rank(folder: Path, rank: int) -> tuple[dict[str, Any], list[TrainingSample]]:
    """One process's state and rows; its random generators become this process's."""
    local = json.loads((folder / f"rank_{rank}.json").read_text())
    tensors = load_file(folder / f"rank_{rank}.safetensors")
    torch.set_rng_state(tensors["rng/torch"])
    if torch.cuda.is_available() and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    version, internal, gauss = local["rng/python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = local["rng/numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    return local, rows_from_tensors(tensors, local["rows"])


def _dealt(of_ranks: Sequence[Sequence[TrainingSample]], backend: Backend) -> list[TrainingSample]:
    """This process's share of all processes' rows; those of one group stay together and are numbered anew."""
    units: dict[tuple[int, int, int], list[TrainingSample]] = {}
    for rank, rows in enumerate(of_ranks):
        for i, row in enumerate(rows):
            units.setdefault((rank, row.group, i if row.group < 0 else 0), []).append(row)
    mine = shard(list(units.values()), backend)
    return [
        replace(row, group=i if row.group >= 0 else row.group) for i, unit in enumerate(mine) for row in unit
    ]


def rows_to_tensors(rows: Sequence[TrainingSample]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Buffered rows as flat tensors for safetensors plus what describes them in JSON."""
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for i, row in enumerate(rows):
        for name in _RENDERED:
            tensors[f"{i}/{name}"] = getattr(row.rendered, name).contiguous()
        for name, tensor in row.rendered.media.items():
            tensors[f"{i}/media/{name}"] = tensor.clone(
                memory_format=torch.contiguous_format
            )  # rows share media
        for name in _STREAMS:
            if getattr(row, name) is not None:
                tensors[f"{i}/{name}"] = getattr(row, name).contiguous()
        described.append(
            {
                "sample_id": row.rendered.sample_id,
                "count": row.count,
                "group": row.group,
                "beside": row.beside,
            }
        )
    return {k: v.clone() for k, v in tensors.items()}, described


def rows_from_tensors(
    tensors: Mapping[str, torch.Tensor], described: Sequence[Mapping[str, Any]]
) -> list[TrainingSample]:
    """The inverse of `rows_to_tensors`."""
    rows = []
    for i, words in enumerate(described):
        media = {k.split("/", 2)[2]: v for k, v in tensors.items() if k.startswith(f"{i}/media/")}
        rendered = Rendered(
            sample_id=words["sample_id"], media=media, **{name: tensors[f"{i}/{name}"] for name in _RENDERED}
        )
        streams = {name: tensors.get(f"{i}/{name}") for name in _STREAMS}
        told = {"count": words["count"], "group": words["group"], "beside": words.get("beside", False)}
        rows.append(TrainingSample(rendered=rendered, **told, **streams))  # type: ignore[arg-type]
    return rows


def _python_state() -> list[Any]:
    version, internal, gauss = random.getstate()
    return [version, list(internal), gauss]


def _numpy_state() -> list[Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), position, has_gauss, cached]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
