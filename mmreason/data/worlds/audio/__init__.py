"""The audio world: tones and syllables on a timeline, as WAV files, with exact ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mmreason.data.worlds.asking import Asker, Kind, merged
from mmreason.data.worlds.audio import compositional, pairs, primitives
from mmreason.data.worlds.audio.scenes import (
    MOST_SOUNDS,
    SECONDS,
    Scene,
    draw_scene,
    evidence_of,
    lay_out,
    targets_of,
)
from mmreason.data.worlds.audio.synth import RATE, sound, wav_bytes
from mmreason.data.worlds.audio.words import listed
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import SceneItem, World, WorldSettings
from mmreason.types import MediaKind

ALONE: dict[str, Kind[Scene]] = {k.name: k for k in (*primitives.KINDS, *compositional.KINDS)}
PAIRED: dict[str, Kind[Scene]] = {k.name: k for k in (*pairs.PRIMITIVES, *pairs.COMPOSITIONAL)}
GROUPS = {
    "primitive": tuple(kind.name for kind in (*primitives.KINDS, *pairs.PRIMITIVES)),
    "compositional": tuple(kind.name for kind in (*compositional.KINDS, *pairs.COMPOSITIONAL)),
}
KINDS = ALONE | PAIRED
AUDIO: MediaKind = "audio"


def _one_clip(sizes: Sequence[int], split: str, rng: np.random.Generator) -> Scene:
    return draw_scene((sizes[int(rng.integers(len(sizes)))],), split, rng)


def _two_clips(sizes: Sequence[int], split: str, rng: np.random.Generator) -> Scene:
    """Larger scenes more often: two clips that hold a sound or two each have little in common to ask about."""
    n = int(rng.choice(sizes, p=np.divide(sizes, sum(sizes)))) + 1
    first = min(max(n // 2 + int(rng.integers(-1, 2)) + int(rng.integers(n % 2 + 1)), 1), n - 1)
    return draw_scene((first, n - first), split, rng)


def size_of(scene: Scene) -> int:
    """1 is the least a scene can hold: its sounds, not counting the first of a second clip."""
    return len(scene.sounds) - len(scene.clips) + 1


def _write(scene: Scene, chosen: list[Candidate], name: str, rng: np.random.Generator) -> SceneItem:
    """Write the chosen questions and play the clips."""
    layout = tuple(lay_out(clip, rng) for clip in scene.clips)
    asker = ASKERS[len(scene.clips) - 1]
    questions = asker.questions(scene, chosen, listed(scene), lambda marks: evidence_of(marks, layout), rng)
    media = tuple((AUDIO, "wav", wav_bytes(sound(notes, SECONDS, RATE, rng), RATE)) for notes in layout)
    return SceneItem(f"{name}-{len(media)}", media, questions, targets_of(layout))


ASKERS = (
    Asker("audio", ALONE, MOST_SOUNDS, size_of, _one_clip, _write),
    Asker("audio pairs", PAIRED, MOST_SOUNDS - 1, size_of, _two_clips, _write),
)


def scenes(settings: WorldSettings) -> Iterator[SceneItem]:
    """Endless scenes of one clip or of two, so that every kind is asked about as often.

    Raises ValueError when no scene of the difficulty asked for can carry the kinds asked for.
    """
    shares = [
        replace(settings, kinds=tuple(k for k in settings.kinds if k in asker.kinds)) for asker in ASKERS
    ]
    yield from merged(
        list(zip(ASKERS, shares, strict=True)), [len(share.kinds) for share in shares], settings
    )


WORLD = World("audio", 1, tuple(KINDS), GROUPS, scenes)
