"""Scenes of the audio world: one clip of 1..6 sounds, or two clips to compare, and which split a clip belongs to."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from mmreason.data.worlds.audio.synth import LOUDS, PITCHES, SOUNDS, TONES, Note
from mmreason.data.worlds.rows import Target

SECONDS = 4.0
MOST_SOUNDS = 6  # of a scene, over both clips where it has two
ECHO = 0.8  # how often a sound of a second clip is of a kind that the first holds
SALT = 88  # holds out single sounds of every pitch, and a syllable: there are only 16 of them to share
TEST_SHARE = 5  # one clip in five belongs to the test split
LENGTHS = (0.28, 0.4)  # of a sound, seconds
GAP = 0.26  # the least silence between two sounds, seconds: 16 features a clip still hear it
MARGIN = 0.1  # the least silence before the first and after the last, seconds
SILENCE = "silence"
BINS = 40  # of the dense truth
IGNORED = -100

Term = tuple[str | None, str | None]  # pitch, kind; None is "any"
NAME_TERMS: tuple[Term, ...] = tuple((p, k) for p in PITCHES for k in TONES)
KIND_TERMS: tuple[Term, ...] = tuple((None, k) for k in SOUNDS)
PITCH_TERMS: tuple[Term, ...] = tuple((p, None) for p in PITCHES)
TERMS: dict[str, tuple[Term, ...]] = {"name": NAME_TERMS, "kind": KIND_TERMS, "pitch": PITCH_TERMS}


@dataclass(frozen=True)
class Heard:
    """One sound at its place in a clip; places count from 1. Example: `Heard(2, "bell", "high", "soft")`."""

    place: int
    kind: str
    pitch: str  # "" for a syllable
    loud: str
    clip: int = 0  # index of the clip in its scene

    @property
    def name(self) -> str:
        """Pitch and kind: "high bell", "ba"."""
        return f"{self.pitch} {self.kind}".lstrip()


Clip = tuple[Heard, ...]


@dataclass(frozen=True)
class Scene:
    """One or two clips, each with its sounds in order. Example: `Scene(((Heard(1, "ba", "", "loud"),),))`."""

    clips: tuple[Clip, ...]

    @property
    def sounds(self) -> Clip:
        """Every sound, clip after clip."""
        return tuple(sound for clip in self.clips for sound in clip)

    @cached_property
    def by_term(self) -> tuple[dict[Term, Clip], ...]:
        """For each clip, every term that names something -> its sounds in order."""
        found: list[dict[Term, list[Heard]]] = [defaultdict(list) for _ in self.clips]
        for sound in self.sounds:
            for term in product((sound.pitch, None), (sound.kind, None)):
                found[sound.clip][term].append(sound)
        return tuple({term: tuple(sounds) for term, sounds in clip.items()} for clip in found)

    def find(self, term: Term, clip: int = 0) -> Clip:
        """The sounds of one clip that a term names, in order."""
        return self.by_term[clip].get(term, ())

    def count(self, term: Term, clip: int = 0) -> int:
        """How many sounds of one clip a term names."""
        return len(self.find(term, clip))

    def once(self, group: str) -> dict[Term, Heard]:
        """The terms of a group that name exactly one sound of the first clip, in the order they are heard."""
        found = {term: self.find(term) for term in TERMS[group]}
        single = [(things[0].place, term, things[0]) for term, things in found.items() if len(things) == 1]
        return {term: sound for _, term, sound in sorted(single, key=lambda s: s[0])}


def split_of(clip: Clip) -> str:
    """The one split that may play this clip, decided by the names heard: no list of names is in both splits."""
    content = f"{SALT} " + ";".join(sound.name for sound in clip)
    return "test" if hashlib.sha256(content.encode()).digest()[0] % TEST_SHARE == 0 else "train"


def _draw_clip(
    n: int, before: Sequence[Clip], shares: Mapping[str, np.ndarray], rng: np.random.Generator
) -> Clip:
    kinds = rng.choice(len(SOUNDS), size=n, p=shares["kind"])
    pitches = rng.choice(len(PITCHES), size=n, p=shares["pitch"])
    louds = rng.integers(len(LOUDS), size=n)
    if before:
        heard = rng.permutation(sorted({SOUNDS.index(sound.kind) for sound in before[0]}))
        kinds = np.where(rng.random(n) < ECHO, np.resize(heard, n), kinds)
    return tuple(
        Heard(i, SOUNDS[k], PITCHES[p] if SOUNDS[k] in TONES else "", LOUDS[v], len(before))
        for i, (k, p, v) in enumerate(zip(kinds, pitches, louds, strict=True), start=1)
    )


def draw_scene(sizes: tuple[int, ...], split: str, rng: np.random.Generator) -> Scene:
    """Clips of so many sounds each that all belong to `split`, by rejection.

    Kinds and pitches follow uneven shares drawn per scene, so that high counts, ties and sounds that stand alone
    all occur; the shares treat all kinds alike and all pitches alike. A second clip takes some of its kinds from
    the first.
    """
    while True:
        shares = {"kind": rng.dirichlet([0.5] * len(SOUNDS)), "pitch": rng.dirichlet([1.0] * len(PITCHES))}
        clips: list[Clip] = []
        for n in sizes:
            clips.append(_draw_clip(n, clips, shares, rng))
        if all(split_of(clip) == split for clip in clips):
            return Scene(tuple(clips))


def lay_out(clip: Clip, rng: np.random.Generator) -> tuple[Note, ...]:
    """When each sound of a clip starts and how long it lasts, in whole milliseconds."""
    lengths = rng.uniform(*LENGTHS, size=len(clip))
    spare = SECONDS - 2 * MARGIN - lengths.sum() - GAP * (len(clip) - 1)
    shares = rng.dirichlet([1.0] * (len(clip) + 1))[:-1] * spare
    notes, clock = [], MARGIN
    for sound, length, wait in zip(clip, lengths, shares, strict=True):
        clock += wait
        notes.append(Note(sound.kind, sound.pitch, sound.loud, round(clock, 3), round(length, 3)))
        clock += length + GAP
    return tuple(notes)


def evidence_of(
    sounds: tuple[Heard, ...], layout: tuple[tuple[Note, ...], ...]
) -> tuple[dict[str, Any], ...]:
    """Spans [start, end] in seconds with their names; `medium` is the clip."""
    spans = []
    for sound in sounds:
        note = layout[sound.clip][sound.place - 1]
        spans.append({"span": [note.start, round(note.end, 3)], "label": sound.name, "medium": sound.clip})
    return tuple(spans)


def targets_of(layout: tuple[tuple[Note, ...], ...]) -> tuple[Target, ...]:
    """What sounds in the middle of each tenth of a second: kind, pitch and loudness; 0 is silence.

    Syllables have no pitch class: those bins are left out of the pitch.
    """
    middles = (np.arange(BINS) + 0.5) * (SECONDS / BINS)
    targets = []
    for medium, notes in enumerate(layout):
        labels = {name: np.zeros(BINS, dtype=int) for name in ("kind", "pitch", "loud")}
        for note in notes:
            inside = (note.start <= middles) & (middles < note.end)
            labels["kind"][inside] = SOUNDS.index(note.kind) + 1
            labels["pitch"][inside] = PITCHES.index(note.pitch) + 1 if note.pitch else IGNORED
            labels["loud"][inside] = LOUDS.index(note.loud) + 1
        for name, words in (("kind", SOUNDS), ("pitch", PITCHES), ("loud", LOUDS)):
            values = tuple(int(v) for v in labels[name])
            targets.append(Target(medium, f"audio/{name}", (SILENCE, *words), (BINS, 1, 1), values, SECONDS))
    return tuple(targets)
