"""The audio world's waves and clips: energy, pitch and timbre are where the truth says, splits share no clip."""

from __future__ import annotations

import io
import wave
from dataclasses import replace

import numpy as np
import pytest

from mmreason.data.worlds.audio.scenes import (
    BINS,
    GAP,
    MARGIN,
    SECONDS,
    Clip,
    Heard,
    draw_scene,
    evidence_of,
    lay_out,
    split_of,
    targets_of,
)
from mmreason.data.worlds.audio.synth import (
    LOUDS,
    PITCHES,
    RATE,
    SOUNDS,
    SYLLABLES,
    TONES,
    Note,
    play,
    sound,
    wav_bytes,
)
from mmreason.data.worlds.rows import Target

NAMES = [(k, p) for k in SOUNDS for p in (PITCHES if k in TONES else ("",))]
MIDDLES = {"low": 215, "middle": 540, "high": 1350}  # Hz


def _read(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float) / 32767


def _clip(seed: int) -> tuple[Clip, tuple[Note, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    (clip,) = draw_scene((1 + seed % 6,), "train", rng).clips
    notes = lay_out(clip, rng)
    samples = _read(wav_bytes(sound(notes, SECONDS, RATE, rng), RATE))
    assert samples.shape == (int(SECONDS * RATE),)
    return clip, notes, samples


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _pitch(samples: np.ndarray) -> str:
    """The pitch class nearest to the strongest frequency."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)[int(spectrum.argmax())]
    return min(MIDDLES, key=lambda p: float(abs(np.log(hertz / MIDDLES[p]))))


def _heard(samples: np.ndarray, target: Target) -> float:
    """Share of the bins whose label the wave itself gives back: sound or silence, its pitch, or its loudness."""
    labels = np.asarray(target.labels)
    parts = samples.reshape(BINS, -1)[:, RATE // 33 : -(RATE // 33)]  # the middle 40 ms
    levels = np.asarray([_level(part) for part in parts])
    if target.name == "audio/kind":
        return float(np.mean((levels > 0.0042) == (labels > 0)))
    edges = np.flatnonzero(np.diff(labels, prepend=0, append=0))
    right = []
    for first, last in zip(edges, edges[1:], strict=False):
        if labels[first] > 0:
            word = target.words[labels[first]]
            run = samples[first * RATE // 10 : last * RATE // 10]
            right += [word == (_pitch(run) if target.name == "audio/pitch" else LOUDS[_level(run) > 0.055])]
    return float(np.mean(right)) if right else 1.0


def _mean_heard(shift: int = 0, words: dict[str, str] | None = None) -> dict[str, float]:
    """Agreement of waves and dense truth over forty clips; bins shifted or words renamed make a mutant."""
    found: dict[str, list[float]] = {"audio/kind": [], "audio/pitch": [], "audio/loud": []}
    for seed in range(40):
        _, notes, samples = _clip(seed)
        for target in targets_of((notes,)):
            renamed = tuple((words or {}).get(word, word) for word in target.words)
            mutant = replace(target, labels=tuple(np.roll(target.labels, shift)), words=renamed)
            found[target.name].append(_heard(samples, mutant))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_waves_agree_with_the_dense_truth() -> None:
    agreement = _mean_heard()
    assert agreement["audio/kind"] > 0.96  # bins that a sound only grazes may go either way
    assert agreement["audio/pitch"] > 0.99
    assert agreement["audio/loud"] > 0.99


def test_mutants_of_the_dense_truth_disagree_with_the_waves() -> None:
    assert _mean_heard(shift=1)["audio/kind"] < 0.9
    assert _mean_heard(words={"low": "high", "high": "low"})["audio/pitch"] < 0.6
    assert _mean_heard(words={"soft": "loud", "loud": "soft"})["audio/loud"] < 0.1


def test_dense_truth_and_evidence_by_hand() -> None:
    notes = (Note("bell", "high", "soft", 0.45, 0.3), Note("gu", "", "loud", 2.0, 0.4))
    clip = (Heard(1, "bell", "high", "soft", 1), Heard(2, "gu", "", "loud", 1))
    kind, pitch, loud = targets_of(((), notes))[3:]
    assert (kind.medium, kind.name, kind.grid, kind.seconds) == (1, "audio/kind", (40, 1, 1), 4.0)
    silence, bell, gu = 0, kind.words.index("bell"), kind.words.index("gu")
    assert kind.words[silence] == "silence"
    assert kind.labels == (silence,) * 4 + (bell,) * 3 + (silence,) * 13 + (gu,) * 4 + (silence,) * 16
    assert pitch.labels == (0,) * 4 + (pitch.words.index("high"),) * 3 + (0,) * 13 + (-100,) * 4 + (0,) * 16
    assert {loud.words[v] for v in loud.labels} == {"silence", "soft", "loud"}
    assert evidence_of(clip[:1], ((), notes)) == ({"span": [0.45, 0.75], "label": "high bell", "medium": 1},)


def test_sounds_keep_their_distance() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 7):
        for _ in range(50):
            notes = lay_out(draw_scene((n,), "train", rng).clips[0], rng)
            starts, ends = [note.start for note in notes], [note.end for note in notes]
            assert starts[0] >= MARGIN - 1e-3 and ends[-1] <= SECONDS - MARGIN + 2e-3
            assert all(b - a >= GAP - 2e-3 for a, b in zip(ends, starts[1:], strict=False))


def _bands(samples: np.ndarray) -> np.ndarray:
    """Log energy in 24 bands of equal ratio, in six slices of the sound and in twelve short ones of its middle."""
    spectra = [
        np.abs(np.fft.rfft(s * np.hanning(len(s))))
        for s in np.array_split(samples[: len(samples) // 6 * 6], 6)
    ]
    edges = np.geomspace(3, len(spectra[0]), 25).astype(int)
    bands = [np.log(np.add.reduceat(s, edges[:-1]) + 1e-3) for s in spectra]
    grain = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    unrest = np.log(grain.std(axis=1) + 1e-3).std()
    return np.concatenate([np.concatenate(bands), [unrest, 1.0]])


def test_a_linear_reader_tells_all_names_apart() -> None:
    rng = np.random.default_rng(1)
    found: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    names: dict[str, list[int]] = {"train": [], "test": []}
    for split, each in (("train", 40), ("test", 10)):
        for i, (kind, pitch) in enumerate(NAMES):
            for _ in range(each):
                note = Note(kind, pitch, "loud", 0.0, float(rng.uniform(0.28, 0.4)))
                found[split].append(_bands(play(note, RATE, rng)))
                names[split].append(i)
    x, y = np.stack(found["train"]), np.eye(len(NAMES))[names["train"]]
    scale = x.std(axis=0) + 1e-3
    weights = np.linalg.solve((x / scale).T @ (x / scale) + 10 * np.eye(x.shape[1]), (x / scale).T @ y)
    said = (np.stack(found["test"]) / scale @ weights).argmax(axis=1)
    assert np.mean(said == np.asarray(names["test"])) > 0.93


def test_no_two_sounds_of_a_name_are_alike() -> None:
    for kind, pitch in NAMES:
        rng = np.random.default_rng(2)
        one, two = (play(Note(kind, pitch, "loud", 0.0, 0.3), RATE, rng) for _ in range(2))
        assert abs(float(np.corrcoef(one, two)[0, 1])) < 0.5, kind
        assert _level(one) != _level(two)


def test_loud_is_far_from_soft_and_nothing_clips() -> None:
    rng = np.random.default_rng(3)
    for kind, pitch in NAMES:
        made = {v: [play(Note(kind, pitch, v, 0.0, 0.3), RATE, rng) for _ in range(20)] for v in LOUDS}
        assert min(map(_level, made["loud"])) > 2.5 * max(map(_level, made["soft"])), kind
        assert max(float(np.abs(w).max()) for w in made["loud"]) < 0.9, kind


def test_waves_depend_on_the_generator_alone() -> None:
    notes = [Note("horn", "low", "loud", 0.2, 0.3), Note("sho", "", "soft", 1.0, 0.4)]
    one, two, three = (sound(notes, 2.0, RATE, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.dtype == np.float32 and one.shape == (2 * RATE,) and np.abs(one).max() <= 1
    assert wav_bytes(one, RATE) == wav_bytes(two, RATE) != wav_bytes(three, RATE)
    assert 0 < _level(sound([], 1.0, RATE, np.random.default_rng(0))) < 0.004


def test_wav_bytes_hold_the_wave() -> None:
    samples = np.asarray([0, 0.5, -0.5, 1, -1, 3], dtype=np.float32)
    assert np.allclose(_read(wav_bytes(samples, RATE)), [0, 0.5, -0.5, 1, -1, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gong"}, "kind is 'gong'; allowed is beep, horn"),
        ({"pitch": "deep"}, "pitch is 'deep'; allowed is 'low', 'middle', 'high'"),
        ({"kind": "ba"}, "pitch is 'low'; allowed is ''"),
        ({"loud": "quiet"}, "loud is 'quiet'; allowed is soft, loud"),
        ({"start": 3.9}, r"start is 3.9; allowed is a note that ends by 4.0 s"),
        ({"seconds": 0.0}, "seconds is 0.0; allowed is at least 0.1"),
    ],
)
def test_bad_notes_are_named(change: dict[str, object], message: str) -> None:
    note = replace(Note("bell", "low", "soft", 0.5, 0.3), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        sound([note], 4.0, RATE, np.random.default_rng(0))


def test_a_clip_belongs_to_one_split_whatever_its_loudness() -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for n in range(1, 7):
            for clip in draw_scene((n, 7 - n), split, rng).clips:
                assert split_of(clip) == split
                assert split_of(tuple(replace(heard, loud="soft") for heard in clip)) == split


def test_a_fifth_of_all_clips_is_held_out_and_single_sounds_of_every_pitch() -> None:
    held = {p for k, p in NAMES if split_of((Heard(1, k, p, "loud"),)) == "test"}
    assert held == {*PITCHES, ""}
    rng = np.random.default_rng(2)
    pairs = [[(1, *NAMES[i]), (2, *NAMES[j])] for i, j in rng.integers(len(NAMES), size=(2000, 2))]
    clips = [tuple(Heard(place, k, p, "soft") for place, k, p in pair) for pair in pairs]
    assert 320 < sum(split_of(clip) == "test" for clip in clips) < 480
    assert len(SYLLABLES) == 4
