"""The one small run that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreason.train.run import train
from tests.train import small


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small.recipe`, run from end to end with nobody disturbing it; do not write into it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small.without_probe(patch)
        train(small.recipe(out))
    return out
