"""The video world: things that appear, vanish, move, turn, flash and hit, as MP4 files, with exact ground truth."""

from __future__ import annotations

import numpy as np

from mmreason.data.worlds.asking import Asker, Kind
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import SceneItem, World
from mmreason.data.worlds.video import compositional, primitives
from mmreason.data.worlds.video.draw import FPS, draw_frames, evidence_of, lay_out, targets_of
from mmreason.data.worlds.video.film import mp4_bytes
from mmreason.data.worlds.video.physics import Clip
from mmreason.data.worlds.video.scenes import MOST_ENTRIES, draw_clip
from mmreason.data.worlds.video.words import listed

KINDS: dict[str, Kind[Clip]] = {kind.name: kind for kind in (*primitives.KINDS, *compositional.KINDS)}
GROUPS = {
    "primitive": tuple(kind.name for kind in primitives.KINDS),
    "compositional": tuple(kind.name for kind in compositional.KINDS),
}


def _write(clip: Clip, chosen: list[Candidate], name: str, rng: np.random.Generator) -> SceneItem:
    """Write the chosen questions and draw the frames."""
    layout = lay_out(clip, rng)
    questions = ASKER.questions(
        clip, chosen, listed(clip.entries), lambda marks: evidence_of(marks, clip, layout), rng
    )
    film = mp4_bytes(draw_frames(clip, layout, rng), FPS)
    return SceneItem(name, (("video", "mp4", film),), questions, targets_of(clip))


ASKER = Asker("video", KINDS, MOST_ENTRIES, lambda clip: len(clip.entries), draw_clip, _write)
WORLD = World("video", 3, tuple(KINDS), GROUPS, ASKER.scenes)
