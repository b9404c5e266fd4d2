"""The spoken world on the real recordings, whose folder MMREASON_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mmreason.data.media import decode
from mmreason.data.media.limits import MediaLimits
from mmreason.data.sources import load_rows
from mmreason.data.worlds.spoken.recordings import RATE, VARIABLE, find_folder, read_takes, takes_of
from mmreason.recipe import load_recipe

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "spoken_arithmetic.yaml"
pytestmark = pytest.mark.skipif(
    not os.environ.get(VARIABLE),
    reason=f"needs real recordings: set {VARIABLE} to the folder of the Free Spoken Digit Dataset",
)


def test_every_recording_can_be_read() -> None:
    takes = [t for who in (("train", "known"), ("test", "known"), ("test", "unseen")) for t in takes_of(*who)]
    waves = read_takes(find_folder(None), takes)
    assert len(waves) == 2000
    lengths = np.array([len(w) / RATE for w in waves.values()])
    assert 0.1 <= lengths.min() and lengths.max() <= 2.0
    assert max(np.abs(w).max() for w in waves.values()) <= 1.0


def test_the_recipes_sources_can_be_made(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    for name, source in recipe.data.items():
        samples = load_rows(name, source.model_copy(update={"count": 8}), tmp_path / name)
        assert len(samples) == 8
        for ref in samples[0].media:
            sound = decode(ref, MediaLimits()).waveform
            assert sound is not None and len(sound) == 16_000 and np.abs(sound).max() > 0.005
