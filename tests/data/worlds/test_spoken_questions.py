"""Questions of the spoken world, answered again by a listener who reads nothing but the sounds."""

from __future__ import annotations

import io
import json
import wave
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.data.sources import load_rows
from mmreason.data.targets import dense_targets, with_targets
from mmreason.data.worlds import make_world
from mmreason.data.worlds.spoken import KINDS
from mmreason.data.worlds.spoken.recordings import RATE as RECORDED
from mmreason.data.worlds.spoken.sound import MOST, RATE, loudest, otherwise, plain
from mmreason.schema import SourceConfig
from tests.data.worlds.digits import digit_of, tone, write_recordings
from tests.data.worlds.text_only import accuracy_of, chance_of, text_of

Row = dict[str, Any]
PLACES = ("first", "second", "third")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every recording, as tones."""
    return write_recordings(tmp_path_factory.mktemp("spoken") / "recordings")


@pytest.fixture(scope="module")
def held_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Row, list[np.ndarray]]]:
    """Test rows with the waves of their sounds."""
    made = make_world(
        "spoken",
        tmp_path_factory.mktemp("rows") / "w",
        count=400,
        seed=5,
        split="test",
        recordings=str(folder),
    )
    return [(row, waves_of(row, made.parent)) for row in rows_of(made)]


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def waves_of(row: Row, root: Path) -> list[np.ndarray]:
    """Float waves, checked to be of one second at the rate of all worlds."""
    waves = []
    for part in row["messages"][0]["content"][:-1]:
        shard, member = part["audio"].split("#")
        with (
            zipfile.ZipFile(root / shard) as archive,
            wave.open(io.BytesIO(archive.read(member))) as file,
        ):
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
            waves.append(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768)
        assert len(waves[-1]) == RATE
    return waves


def answer(text: str, kind: str, digits: list[int]) -> str:
    """What a listener says who hears these digits."""
    if kind in ("digit", "list"):
        return " ".join(map(str, digits))
    if kind == "place":
        return str(next(digit for name, digit in zip(PLACES, digits, strict=False) if name in text))
    if kind == "order":
        return str(digits[-1] if "last" in text else digits[0])
    return str(max(digits) if kind == "largest" else sum(digits))


def test_every_answer_is_what_is_heard(held_out: list[tuple[Row, list[np.ndarray]]]) -> None:
    kinds: defaultdict[str, int] = defaultdict(int)
    for row, waves in held_out:
        digits = [digit_of(w, RATE) for w in waves]
        kinds[row["kind"]] += 1
        assert row["solution"] == answer(text_of(row), row["kind"], digits), row["id"]
        assert sorted(row["options"]) == (sorted(map(str, digits)) if row["kind"] == "order" else [])
        if row["kind"] != "list":
            assert f"<caption>{' '.join(map(str, digits))}</caption>" in row["rationale"]["structured"]
            assert row["rationale"]["structured"].endswith(f"<summary>{row['solution']}</summary>")
        for part in row["rationale"]["structured"].split("<reasoning>")[1].split("<")[0].split(", "):
            if "=" in part:
                left, right = part.split(" = ")
                assert sum(map(int, left.split(" + "))) == int(right)
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= 0.4 * 400 / len(KINDS), kinds  # `digit`: one recording carries one question


def test_sums_are_of_two_and_of_three(held_out: list[tuple[Row, list[np.ndarray]]]) -> None:
    sizes = {kind: {len(waves) for row, waves in held_out if row["kind"] == kind} for kind in KINDS}
    assert sizes["digit"] == {1} and sizes["sum_two"] == {2} and sizes["sum_three"] == {3}
    assert sizes["largest"] == sizes["order"] == sizes["place"] == sizes["list"] == {2, 3}


def test_evidence_is_when_it_is_heard(held_out: list[tuple[Row, list[np.ndarray]]]) -> None:
    for row, waves in held_out:
        for mark in row["evidence"]:
            sound = waves[mark["medium"]]
            first, end = (round(t * RATE) for t in mark["span"])
            assert 0 <= first < end <= RATE
            assert digit_of(sound[first:end], RATE) == int(mark["label"])
            silence = np.concatenate([sound[: max(first - 40, 0)], sound[end + 40 :]])
            assert not silence.any()
        if row["kind"] in ("list", "sum_two", "sum_three"):
            assert [mark["medium"] for mark in row["evidence"]] == list(range(len(waves)))


def test_dense_truth_is_the_digit_where_it_sounds(held_out: list[tuple[Row, list[np.ndarray]]]) -> None:
    seen = 0
    for row, waves in held_out:
        assert ("targets" in row) == row["id"].endswith("-0")
        for target, sound in zip(row.get("targets", ()), waves, strict=False):
            bins = np.abs(sound.reshape(target["grid"][0], -1)).mean(axis=1)
            loud = bins.max()
            words = [target["words"][label] for label in target["labels"]]
            for level, word in zip(bins, words, strict=True):
                if level == 0:
                    assert word == "silence"
                if level > 0.9 * loud:
                    assert word == str(digit_of(sound, RATE))
            assert target["seconds"] == 1.0 and set(words) == {"silence", str(digit_of(sound, RATE))}
            seen += 1
    assert seen > 100


def test_training_rows_are_said_otherwise_and_the_seed_decides_how(folder: Path, tmp_path: Path) -> None:
    for name, count, seed in (("a", 40, 7), ("b", 40, 7), ("long", 80, 7), ("c", 40, 8)):
        make_world(
            "spoken", tmp_path / name, count=count, seed=seed, split="train", recordings=str(folder.parent)
        )
    for file in ("rows.jsonl", "audios-000.zip"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()
    rows = rows_of(tmp_path / "a" / "rows.jsonl")
    assert rows_of(tmp_path / "long" / "rows.jsonl")[:40] == rows
    quiet = [not w[:20].any() for row in rows for w in waves_of(row, tmp_path / "a")]
    assert 0.2 < np.mean(quiet) < 0.8  # the others are in noise


def test_a_training_clip_never_comes_twice() -> None:
    rng = np.random.default_rng(0)
    said = [otherwise(tone(4, 0.5), rng) for _ in range(40)]
    assert len({len(w) for w in said}) > 30 and all(len(w) <= MOST * RATE for w in said)
    assert min(len(w) for w in said) < 0.45 * RATE and max(len(w) for w in said) > 0.55 * RATE
    assert np.ptp([np.abs(w).max() for w in said]) > 0.1


def test_a_held_out_clip_is_the_recording_at_another_rate() -> None:
    heard = plain(tone(2, 0.5))
    np.testing.assert_allclose(heard[200:-200], tone(2, 0.5, RATE)[200:-200], atol=0.02)


def test_of_a_long_recording_the_loudest_stretch_is_kept() -> None:
    wave_ = np.concatenate([np.full(50, 0.1), np.full(100, 0.5), np.full(30, 0.2)])
    assert loudest(wave_, 100).tolist() == [0.5] * 100
    assert loudest(wave_, 120)[-20:].tolist() == [0.2] * 20
    assert loudest(wave_, 500) is wave_
    assert len(plain(tone(3, 1.3))) == round(MOST * RATE)


@pytest.mark.parametrize("style", ["named", "lettered"])
def test_a_reader_of_the_text_stays_near_chance(folder: Path, tmp_path: Path, style: str) -> None:
    rows: dict[str, dict[str, list[Row]]] = {}
    for split, count in (("train", 2500), ("test", 1500)):
        made = make_world(
            "spoken",
            tmp_path / split,
            count=count,
            seed=1,
            split=split,
            options=style,
            rationale=False,
            recordings=str(folder),
        )
        rows[split] = defaultdict(list)
        for row in rows_of(made):
            two = " of two" if row["kind"] == "order" and len(row["options"]) == 2 else ""
            rows[split][row["kind"] + two].append(row)
    limits = {"order of two": 0.58, "order": 0.42, "largest": 0.2, "list": 0.05}
    for kind, test in rows["test"].items():
        chance = chance_of(test)
        assert chance <= limits.get(kind, 0.17), kind
        assert accuracy_of(rows["train"][kind], test) <= chance + 0.1, kind


def test_the_source_reads_its_rows_and_their_dense_truth(folder: Path, tmp_path: Path) -> None:
    cfg = SourceConfig(world="spoken", count=12, recordings=str(folder), kinds=["sum"], split="test")
    samples = load_rows("sums", cfg, tmp_path / "w")
    assert {s.columns["kind"] for s in samples} == {"sum_two", "sum_three"}
    assert all(s.modality == "audio" and len(s.media) in (2, 3) for s in samples)
    for sample in with_targets(samples):
        assert [t.medium for t in dense_targets(sample)] == list(range(len(sample.media)))
    assert len(with_targets(samples)) == len(samples)  # one question fits a scene when sums alone are asked


def test_the_tone_listener_hears() -> None:
    for digit in range(10):
        assert digit_of(tone(digit, 0.3), RECORDED) == digit
