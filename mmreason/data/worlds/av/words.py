"""How the AV world speaks: what is seen and what is heard, each with the number of its moment."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.worlds.av.scenes import Heard, Scene
from mmreason.data.worlds.video.words import listed as seen


def told(sound: Heard) -> str:
    """One sound and its moment: "3 high bell"."""
    return f"{sound.moment} {sound.name}"


def heard(sounds: Sequence[Heard]) -> str:
    """Sounds with their moments, or "none": "3 high bell, 5 ba"."""
    return ", ".join(map(told, sounds)) or "none"


def listed(scene: Scene) -> str:
    """All that is seen, then all that is heard: "2 red star flashed, 3 blue circle appeared, 2 high bell"."""
    return f"{seen(scene.events)}, {heard(scene.sounds)}"
