"""Where the spoken world finds its recordings, whom it holds out, and how it refuses what it cannot use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.data.row_error import RowError
from mmreason.data.sources import load_rows
from mmreason.data.worlds import make_world, read_settings, world_settings
from mmreason.data.worlds.audio.synth import wav_bytes
from mmreason.data.worlds.spoken.recordings import RATE, VARIABLE, find_folder, read_takes, takes_of
from mmreason.schema import SourceConfig
from tests.data.worlds.digits import write_recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recording, as tones; do not write into it."""
    return write_recordings(tmp_path_factory.mktemp("spoken") / "fsdd" / "recordings")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The held-out recordings, to be spoilt."""
    (tmp_path / "copy").mkdir()
    for take in takes_of("test", "known"):
        shutil.copy(folder / take.file, tmp_path / "copy")
    return tmp_path / "copy"


def test_no_recording_is_in_two_places() -> None:
    train, test, unseen = takes_of("train", "known"), takes_of("test", "known"), takes_of("test", "unseen")
    assert (len(train), len(test), len(unseen)) == (1350, 150, 500)
    assert len({*train, *test, *unseen}) == 2000
    assert {t.index for t in train} == set(range(5, 50)) and {t.index for t in test} == set(range(5))
    assert {t.speaker for t in train} == {t.speaker for t in test} == {"george", "jackson", "lucas"}
    assert {t.speaker for t in unseen} == {"nicolas"}


def test_the_unseen_speaker_is_not_trained_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"speaker unseen is held out; split is 'train', allowed is 'test'"):
        make_world(
            "spoken",
            tmp_path / "w",
            count=4,
            seed=0,
            split="train",
            recordings=str(folder),
            speaker="unseen",
        )
    assert not list(tmp_path.iterdir())


def test_the_key_goes_before_the_variable_and_either_may_name_a_folder_above(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for above in (folder, folder.parent, folder.parent.parent):
        assert find_folder(str(above)) == str(folder)
    monkeypatch.setenv(VARIABLE, str(folder.parent.parent))
    assert find_folder(None) == str(folder)
    with pytest.raises(ValueError, match=rf"recordings is '{tmp_path}', where no recording"):
        find_folder(str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=rf"{VARIABLE} is '{tmp_path}', where no recording"):
        find_folder(None)


def test_without_a_folder_the_error_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=rf"data\.mine: .*key `recordings`, or set {VARIABLE}") as caught:
        load_rows("mine", SourceConfig(world="spoken", count=4), tmp_path / "x")
    assert "free-spoken-digit-dataset" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_settings_remember_the_folder_and_the_speaker(folder: Path, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"count": 4, "seed": 0, "split": "test", "speaker": "unseen"}
    wanted["recordings"] = str(folder.parent)
    make_world("spoken", tmp_path / "w", **wanted)
    assert read_settings(tmp_path / "w") == world_settings("spoken", **wanted)
    assert read_settings(tmp_path / "w") != world_settings("spoken", **wanted | {"speaker": "known"})


@pytest.mark.parametrize("given", [{"recordings": "here"}, {"speaker": "unseen"}])
def test_other_worlds_take_no_recordings(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"world image: .*makes all its media itself; leave both out"):
        world_settings("image", count=4, seed=0, split="test", **given)


def test_missing_recordings_are_named(copied: Path) -> None:
    for digit in range(7):
        (copied / f"{digit}_lucas_3.wav").unlink()
    with pytest.raises(ValueError, match=r"7 of 150 recordings are not in .*: 0_lucas_3.wav, .* and 2 more"):
        read_takes(str(copied), takes_of("test", "known"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: b"no sound at all",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: wav_bytes(np.zeros(400), RATE),
        lambda whole: wav_bytes(np.ones(11 * RATE), RATE),
    ],
    ids=["empty", "text", "half", "silent", "eleven seconds"],
)
def test_damaged_recordings_are_named(copied: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = copied / "7_george_1.wav"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"1 of 150 recordings in .* cannot be used: 7_george_1.wav: "):
        read_takes(str(copied), takes_of("test", "known"))
