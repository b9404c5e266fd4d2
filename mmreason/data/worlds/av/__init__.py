"""The AV world: MP4 files with a sound track; every question needs what is seen and what is heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmreason.data.worlds.asking import Asker, Kind
from mmreason.data.worlds.audio.synth import RATE, sound
from mmreason.data.worlds.av import compositional, primitives
from mmreason.data.worlds.av.scenes import (
    MOST_SIZE,
    Heard,
    Scene,
    draw_scene,
    lay_out_sounds,
    sound_evidence,
    sound_targets,
)
from mmreason.data.worlds.av.words import listed
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import SceneItem, World
from mmreason.data.worlds.video.draw import FPS, draw_frames, evidence_of, lay_out, targets_of
from mmreason.data.worlds.video.film import mp4_bytes
from mmreason.data.worlds.video.physics import SECONDS

KINDS: dict[str, Kind[Scene]] = {kind.name: kind for kind in (*primitives.KINDS, *compositional.KINDS)}
GROUPS = {
    "primitive": tuple(kind.name for kind in primitives.KINDS),
    "compositional": tuple(kind.name for kind in compositional.KINDS),
}


def _write(scene: Scene, chosen: list[Candidate], name: str, rng: np.random.Generator) -> SceneItem:
    """Write the chosen questions, draw the frames, play the sounds."""
    layout, notes = lay_out(scene.clip, rng), lay_out_sounds(scene, rng)

    def evidence(marks: tuple[Any, ...]) -> tuple[Mapping[str, Any], ...]:
        events = [mark for mark in marks if not isinstance(mark, Heard)]
        sounds = [mark for mark in marks if isinstance(mark, Heard)]
        return (*evidence_of(events, scene.clip, layout), *sound_evidence(sounds, scene, notes))

    questions = ASKER.questions(scene, chosen, listed(scene), evidence, rng)
    film = mp4_bytes(draw_frames(scene.clip, layout, rng), FPS, sound(notes, SECONDS, RATE, rng), RATE)
    targets = (*targets_of(scene.clip), *sound_targets(notes))
    return SceneItem(name, (("video", "mp4", film), ("audio", "mp4", film)), questions, targets)


ASKER = Asker("av", KINDS, MOST_SIZE, lambda scene: scene.size, draw_scene, _write)
WORLD = World("av", 3, tuple(KINDS), GROUPS, ASKER.scenes)
