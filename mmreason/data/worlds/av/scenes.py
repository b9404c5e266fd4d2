"""Scenes of the AV world: things that each do one thing, and sounds, on one clock of eight moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mmreason.data.worlds.asking import shuffled
from mmreason.data.worlds.audio.scenes import targets_of as audio_targets_of
from mmreason.data.worlds.audio.synth import LOUDS, PITCHES, SYLLABLES, TONES, Note
from mmreason.data.worlds.image.scenes import COLOURS, SHAPES, SIDE
from mmreason.data.worlds.rows import Target
from mmreason.data.worlds.video.draw import seconds_of
from mmreason.data.worlds.video.physics import MOMENTS, STEPS, WAYS, Actor, Clip, Event, Undecided, simulate
from mmreason.data.worlds.video.scenes import act, draw_things, is_clear, uneven
from mmreason.data.worlds.video.scenes import split_of as clip_split

Rng = np.random.Generator
VERBS = ("flashed", "appeared", "vanished", "turned", "moved")
MOST = 4  # things, and sounds
MOST_SIZE = 2 * MOST - 1
UNEVEN = 0.5  # concentration of the shares of verbs within a scene
ONE_PITCH = 0.3  # the same of pitches: one of them is often heard several times
ALL_DIFFER = 0.5  # of the scenes, no two things share a colour or a shape
DELAY = (0.02, 0.06)  # seconds from the beginning of a moment to that of its sound
LENGTHS = (0.36, 0.42)  # of a sound, seconds: it ends within its moment


@dataclass(frozen=True, order=True)
class Heard:
    """One sound and its moment. Example: `Heard(3, "bell", "high", "loud")`."""

    moment: int
    kind: str
    pitch: str  # "" for a syllable
    loud: str

    @property
    def name(self) -> str:
        """Pitch and kind: "high bell", "ba"."""
        return f"{self.pitch} {self.kind}".lstrip()


@dataclass(frozen=True)
class Scene:
    """What is seen and what is heard, each in order; no kind of sound comes twice."""

    clip: Clip
    sounds: tuple[Heard, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """What is seen to happen; each thing does one thing."""
        return self.clip.events

    @property
    def size(self) -> int:
        """1..7: events and sounds, less one."""
        return len(self.events) + len(self.sounds) - 1

    @cached_property
    def heard_at(self) -> dict[int, Heard]:
        """Moment -> its sound."""
        return {sound.moment: sound for sound in self.sounds}

    @cached_property
    def seen_at(self) -> dict[int, Event]:
        """Moment -> its event."""
        return {event.moment: event for event in self.events}

    @cached_property
    def together(self) -> tuple[tuple[Event, Heard], ...]:
        """Events and the sounds heard at their moments."""
        return tuple((e, self.heard_at[e.moment]) for e in self.events if e.moment in self.heard_at)


def split_of(scene: Scene) -> str:
    """The one split that may show this scene, decided by what is seen of it: no film is in both."""
    return clip_split(scene.clip)


def _one_step(actor: Actor, way: str, moment: int) -> Actor:
    """The thing put beside the cell at the wall that it moves into: a move of one moment."""
    rows, columns = STEPS[way]
    near = {-1: 2, 1: SIDE - 1}
    return replace(
        actor, row=near.get(rows, actor.row), column=near.get(columns, actor.column), moves=(way, moment)
    )


def _things(n: int, moments: Sequence[int], rng: Rng) -> list[Actor]:
    verbs = uneven(VERBS, n, UNEVEN, rng)
    actors = draw_things(n, rng)
    if rng.random() < ALL_DIFFER:
        looks = zip(shuffled(COLOURS, rng), shuffled(SHAPES, rng), strict=True)
        actors = [replace(a, colour=c, shape=s) for a, (c, s) in zip(actors, looks, strict=False)]
    things = []
    for actor, verb, moment in zip(actors, verbs, moments, strict=True):
        way = WAYS[int(rng.integers(len(WAYS)))]
        things.append(
            _one_step(actor, way, moment) if verb == "moved" else act(actor, verb, moment, way, rng)
        )
    return things


def _sounds(n: int, moments: Sequence[int], rng: Rng) -> tuple[Heard, ...]:
    kinds = rng.choice(
        [*TONES, *SYLLABLES], size=n, replace=False, p=[0.15] * len(TONES) + [0.1] * len(SYLLABLES)
    )
    pitches = uneven(PITCHES, n, ONE_PITCH, rng)
    louds = rng.integers(len(LOUDS), size=n)
    return tuple(
        sorted(
            Heard(moment, str(kind), pitch if kind in TONES else "", LOUDS[v])
            for moment, kind, pitch, v in zip(moments, kinds, pitches, louds, strict=True)
        )
    )


def _moments(n: int, m: int, rng: Rng) -> tuple[list[int], list[int]]:
    """Moments of n events and of m sounds; how many they share is as often any number as another."""
    seen = [int(x) + 2 for x in rng.permutation(MOMENTS - 1)[:n]]
    silent = [x for x in rng.permutation(MOMENTS) + 1 if x not in seen]
    least = max(0, m - len(silent))
    shared = int(rng.integers(least, min(n, m) + 1))
    heard = [seen[i] for i in rng.permutation(n)[:shared]] + silent[: m - shared]
    return seen, [int(x) for x in rng.permutation(heard)]


def draw_scene(sizes: Sequence[int], split: str, rng: Rng) -> Scene:
    """A scene of one of these sizes that belongs to `split`; large ones more often, since small ones offer little."""
    share = np.asarray(sizes) / sum(sizes)
    total = int(rng.choice(np.asarray(sizes), p=share)) + 1
    while True:
        n = int(rng.integers(max(1, total - MOST), min(MOST, total - 1) + 1))
        seen, heard = _moments(n, total - n, rng)
        try:
            clip = simulate(_things(n, seen, rng))
        except Undecided:
            continue
        scene = Scene(clip, _sounds(total - n, heard, rng))
        if len(clip.events) == n and not clip.did("hit") and is_clear(clip) and split_of(scene) == split:
            return scene


def lay_out_sounds(scene: Scene, rng: Rng) -> tuple[Note, ...]:
    """When each sound starts and how long it lasts, in whole milliseconds, within its moment."""
    notes = []
    for sound in scene.sounds:
        start = seconds_of(sound.moment) + rng.uniform(*DELAY)
        notes.append(
            Note(sound.kind, sound.pitch, sound.loud, round(start, 3), round(rng.uniform(*LENGTHS), 3))
        )
    return tuple(notes)


def sound_evidence(
    sounds: Sequence[Heard], scene: Scene, notes: Sequence[Note]
) -> tuple[dict[str, Any], ...]:
    """Spans [start, end] in seconds with their names; medium 1 is the sound track."""
    spans = []
    for sound in sounds:
        note = notes[scene.sounds.index(sound)]
        spans.append({"span": [note.start, round(note.end, 3)], "label": sound.name, "medium": 1})
    return tuple(spans)


def sound_targets(notes: tuple[Note, ...]) -> tuple[Target, ...]:
    """The audio world's dense truth, of medium 1."""
    return tuple(replace(target, medium=1) for target in audio_targets_of((notes,)))
