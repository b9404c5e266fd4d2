"""The AV world's files: one film with a sound track, one clock; what is decoded is what the truth says."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmreason.data.worlds import make_world
from mmreason.data.worlds.audio.synth import RATE, Note, sound
from mmreason.data.worlds.av.scenes import draw_scene, lay_out_sounds
from mmreason.data.worlds.drawing import RGB
from mmreason.data.worlds.video.draw import GLOW, seconds_of
from mmreason.data.worlds.video.film import mp4_bytes

GREY = np.full((32, 64, 64, 3), 200, dtype=np.uint8)
SLACK = 0.05  # seconds: the most that sound may lie from picture


def _sound_of(film: bytes) -> tuple[np.ndarray, float]:
    """The decoded track [samples] on the container's clock, and the time of its first sample."""
    with av.open(io.BytesIO(film)) as container:
        assert container.streams.audio[0].rate == RATE
        frames = list(container.decode(audio=0))
    return np.concatenate([f.to_ndarray() for f in frames], axis=1)[0], frames[0].time


def _onset(wave: np.ndarray, after: float) -> float:
    """When the sound first rises above the noise, in seconds, from `after` on."""
    loud = np.sqrt(np.convolve(wave**2, np.ones(80) / 80, mode="same"))
    first = round(after * RATE)
    return (first + int(np.argmax(loud[first:] > 0.01))) / RATE


def _lag(wave: np.ndarray, decoded: np.ndarray) -> float:
    """By how many seconds the decoded sound lies behind the wave, by cross-correlation."""
    n = 1 << 18
    match = np.fft.irfft(np.fft.rfft(decoded, n) * np.conj(np.fft.rfft(wave, n)), n)
    lag = int(np.argmax(match))
    return (lag - n if lag > n // 2 else lag) / RATE


@pytest.mark.parametrize("kind", ["click", "beep", "sho"])
def test_the_decoded_track_is_in_sync(kind: str) -> None:
    pitch = "" if kind == "sho" else "high"
    notes = [Note(kind, pitch, "loud", start, 0.4) for start in (0.03, 1.5, 3.55)]
    wave = sound(notes, 4.0, RATE, np.random.default_rng(1))
    film = mp4_bytes(GREY, 8, wave, RATE)
    decoded, start = _sound_of(film)
    assert start == 0
    assert abs(_lag(wave, decoded)) < 0.001
    assert 4.0 <= len(decoded) / RATE < 4.0 + 0.064  # whole AAC frames of 1024 samples
    for note in notes:
        assert abs(_onset(decoded, max(note.start - 0.1, 0)) - note.start) < SLACK
    error = decoded[: len(wave)] - wave
    assert float((error**2).sum() / (wave**2).sum()) < 0.05
    late = np.concatenate([np.zeros(round(0.064 * RATE)), wave])  # mutant: the encoder's delay left in
    assert (
        abs(_lag(wave, _sound_of(mp4_bytes(GREY, 8, late[: len(wave)].astype(np.float32), RATE))[0])) > SLACK
    )


def test_equal_input_gives_equal_bytes() -> None:
    wave = sound([Note("bell", "low", "loud", 1.0, 0.4)], 4.0, RATE, np.random.default_rng(1))
    assert mp4_bytes(GREY, 8, wave, RATE) == mp4_bytes(GREY, 8, wave.copy(), RATE)
    assert mp4_bytes(GREY, 8, wave, RATE) != mp4_bytes(GREY, 8, -wave, RATE)


def test_every_sound_lies_in_its_moment_and_no_kind_comes_twice() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = draw_scene(range(1, 8), "train", rng)
        for heard, note in zip(scene.sounds, lay_out_sounds(scene, rng), strict=True):
            assert seconds_of(heard.moment) < note.start and note.end < seconds_of(heard.moment + 1)
        assert len({s.kind for s in scene.sounds}) == len(scene.sounds) == len(scene.heard_at)
        assert len(scene.seen_at) == len(scene.events)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world("av", tmp_path_factory.mktemp("av") / "w", count=60, seed=3, split="train").parent


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def test_a_row_names_one_file_as_video_and_as_audio(made: Path) -> None:
    rows = _rows(made)
    with zipfile.ZipFile(made / "videos-000.zip") as archive:
        assert len(archive.namelist()) == len({r["scene"] for r in rows})
    for row in rows:
        video, audio, question = row["messages"][0]["content"]
        assert video["type"] == "video" and audio == {"type": "audio", "audio": video["video"]}
        assert question["type"] == "text"
    assert sorted(p.name for p in made.iterdir()) == ["rows.jsonl", "videos-000.zip", "world.json"]


def test_decoded_films_flash_and_sound_when_the_evidence_says(made: Path) -> None:
    flashes = spans = 0
    with zipfile.ZipFile(made / "videos-000.zip") as archive:
        for row in _rows(made):
            film = archive.read(row["messages"][0]["content"][0]["video"].split("#")[1])
            with av.open(io.BytesIO(film)) as container:
                frames = [f.to_ndarray(format="rgb24").astype(float) for f in container.decode(video=0)]
            wave, _ = _sound_of(film)
            level = np.sqrt(np.convolve(wave**2, np.ones(800) / 800, mode="same"))
            for e in row["evidence"]:
                if "span" in e and e.get("medium") == 1:
                    a, b = (round(x * RATE) for x in e["span"])
                    assert level[a:b].max() > 3 * max(
                        level[max(a - 1600, 0) : max(a - 500, 1)].min(), 1e-4
                    ), e
                    spans += 1
                elif "box" in e and e["label"].endswith("flashed"):
                    x0, y0, x1, y1 = e["box"]
                    glow = [
                        (np.abs(frames[i][y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] - GLOW).sum(axis=2) < 90).mean()
                        for i in (round(e["t"] * 8), (round(e["t"] * 8) + 8) % 32)
                    ]
                    assert glow[0] > 0.15 > glow[1], e
                    near = np.abs(frames[round(e["t"] * 8)][y0:y1, x0:x1] - RGB[e["label"].split()[0]])
                    assert (near.sum(axis=2) < 130).mean() > 0.1
                    flashes += 1
    assert flashes >= 10 and spans >= 60


def test_targets_name_both_media_on_one_clock(made: Path) -> None:
    firsts = [r for r in _rows(made) if "targets" in r]
    assert len(firsts) == len({r["scene"] for r in firsts})
    for row in firsts:
        by = {t["name"]: t for t in row["targets"]}
        assert [t["medium"] for t in row["targets"]] == [0] * 7 + [1] * 3
        assert by["audio/kind"]["grid"] == [40, 1, 1] and by["video/colour"]["grid"] == [8, 4, 4]
        assert all(t["seconds"] == 4.0 for t in row["targets"])
        if row["kind"] == "list":
            heard = [e for e in row["solution"].split(", ") if e.split()[-1] in by["audio/kind"]["words"]]
            for entry in heard:
                bins = by["audio/kind"]["labels"][(int(entry[0]) - 1) * 5 : int(entry[0]) * 5]
                assert {by["audio/kind"]["words"][i] for i in bins} - {by["audio/kind"]["words"][0]} == {
                    entry.split()[-1]
                }
    assert any(r["kind"] == "list" for r in firsts)


def test_equal_settings_give_equal_files(made: Path, tmp_path: Path) -> None:
    again = make_world("av", tmp_path / "w", count=60, seed=3, split="train").parent
    assert all(p.read_bytes() == (again / p.name).read_bytes() for p in made.iterdir())
