"""The spoken world: real recordings of spoken digits, one to three to a question, and arithmetic on what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mmreason.data.worlds.asking import Asker, Kind
from mmreason.data.worlds.audio.synth import wav_bytes
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Question, SceneItem, World, WorldSettings
from mmreason.data.worlds.spoken import questions
from mmreason.data.worlds.spoken.recordings import find_folder, read_takes, takes_of
from mmreason.data.worlds.spoken.scenes import (
    MOST_TAKES,
    Scene,
    Span,
    draw_scene,
    evidence_of,
    targets_of,
)
from mmreason.data.worlds.spoken.sound import RATE, SECONDS, otherwise, plain, window
from mmreason.types import MediaKind

KINDS: dict[str, Kind[Scene]] = {k.name: k for k in (*questions.PRIMITIVES, *questions.COMPOSITIONAL)}
GROUPS = {
    "primitive": tuple(kind.name for kind in questions.PRIMITIVES),
    "compositional": tuple(kind.name for kind in questions.COMPOSITIONAL),
    "sum": ("sum_two", "sum_three"),
}
AUDIO: MediaKind = "audio"


def size_of(scene: Scene) -> int:
    """How many recordings."""
    return len(scene.takes)


def _play(wave: np.ndarray, training: bool, rng: np.random.Generator) -> tuple[bytes, Span]:
    """The WAV of one window and when in it the recording is heard."""
    heard = otherwise(wave, rng) if training else plain(wave)
    start = float(rng.uniform(0, SECONDS - len(heard) / RATE))
    return wav_bytes(window(heard, start, training, rng), RATE), (start, start + len(heard) / RATE)


def scenes(settings: WorldSettings) -> Iterator[SceneItem]:
    """Endless scenes; recordings of training rows are said otherwise each time, those of test rows are as they are.

    Raises ValueError naming recordings that are missing or damaged, or when no scene of the difficulty asked for can
    carry the kinds asked for.
    """
    takes = takes_of(settings.split, settings.speaker)
    waves = read_takes(settings.recordings, takes)

    def draw(sizes: Sequence[int], split: str, rng: np.random.Generator) -> Scene:
        return draw_scene(takes, sizes, rng)

    def write(scene: Scene, chosen: list[Candidate], name: str, rng: np.random.Generator) -> SceneItem:
        played = [_play(waves[take], settings.split == "train", rng) for take in scene.takes]
        spans = [span for _, span in played]
        media = tuple((AUDIO, "wav", data) for data, _ in played)
        asked = tuple(_question(asker, scene, candidate, spans, rng) for candidate in chosen)
        return SceneItem(f"{name}-{settings.speaker}", media, asked, targets_of(scene, spans))

    asker = Asker("spoken", KINDS, MOST_TAKES, size_of, draw, write)
    yield from asker.scenes(settings)


def _question(
    asker: Asker[Scene],
    scene: Scene,
    candidate: Candidate,
    spans: Sequence[Span],
    rng: np.random.Generator,
) -> Question:
    d = KINDS[candidate.kind].ask(scene, candidate, rng)
    difficulty = asker.difficulty(size_of(scene), candidate.kind)
    evidence = evidence_of(d.marks, scene, spans)
    return Question(
        candidate.kind, d.text, d.problem_type, d.answers, d.thought, difficulty, d.options, evidence
    )


WORLD = World("spoken", 1, tuple(KINDS), GROUPS, scenes, find_folder)
