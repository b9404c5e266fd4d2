"""Settings of every test, and the tiny models that many of them share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # of child processes, as of this one: sums are then the same to the bit

import pytest
import torch

from mmreason.plugins import load_plugins
from tests.tiny import KINDS, SOUND_KINDS, tiny_assembled, tiny_native

load_plugins(["mmreason_encoders"])


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test begins with the same random state and one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hf_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for transformers' copies of remote code, so that tests leave none in the user's."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="session")
def assembled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny assembled checkpoint; do not write into it."""
    return tiny_assembled(tmp_path_factory.mktemp("tiny") / "assembled")


@pytest.fixture(scope="session")
def native_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> a tiny native checkpoint of that kind, made once; do not write into it."""
    root = tmp_path_factory.mktemp("native")
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        assert kind in (*KINDS, *SOUND_KINDS)
        if kind not in made:
            made[kind] = tiny_native(kind, root / kind)
        return made[kind]

    return folder
