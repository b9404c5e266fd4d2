"""How the audio world speaks: terms, plurals, places and lists."""

from __future__ import annotations

from collections.abc import Sequence

from mmreason.data.worlds.audio.scenes import Heard, Scene, Term
from mmreason.data.worlds.audio.synth import SYLLABLES

CLIPS = ("first", "second")


def short(term: Term) -> str:
    """The term without filler: `("high", None)` -> "high", `("high", "bell")` -> "high bell"."""
    return " ".join(word for word in term if word)


def singular(term: Term) -> str:
    """`("high", None)` -> "high sound", `(None, None)` -> "sound", `(None, "ba")` -> "ba"."""
    pitch, kind = term
    return " ".join(word for word in (pitch, kind or "sound") if word)


def plural(term: Term) -> str:
    """`("high", "bell")` -> "high bells"; a syllable stays as it is."""
    return singular(term) if term[1] in SYLLABLES else singular(term) + "s"


def places(sounds: Sequence[Heard]) -> str:
    """Places, or "none": "1 3"."""
    return " ".join(str(sound.place) for sound in sounds) or "none"


def in_order(sounds: Sequence[Heard]) -> str:
    """Each sound with its place: "1 high beep, 2 ba"."""
    return ", ".join(f"{sound.place} {sound.name}" for sound in sounds)


def with_loudness(sounds: Sequence[Heard]) -> str:
    """Each sound with its place and how loud it is: "1 high beep soft, 2 ba loud"."""
    return ", ".join(f"{in_order([sound])} {sound.loud}" for sound in sounds)


def looked_up(what: str, sound: Heard) -> str:
    """The one sound that is meant, its place, then all of it: "bell 3, 3 low bell", "sound 3, 3 low bell".

    What is meant comes first, for the same reason as in the video world's `found`.
    """
    place = f" {sound.place}"
    return f"{what.removesuffix(place)}{place}, {in_order([sound])}"


def listed(scene: Scene) -> str:
    """All that is heard, in order; of two clips "first 1 high beep, 2 ba, second 1 low bell"."""
    if len(scene.clips) == 1:
        return in_order(scene.clips[0])
    return ", ".join(f"{which} {in_order(clip)}" for which, clip in zip(CLIPS, scene.clips, strict=True))


def seen(scene: Scene, terms: Sequence[Term], clip: int = 0) -> str:
    """What a caption says about some terms: "beep 1 3, ba none"."""
    return ", ".join(f"{short(term)} {places(scene.find(term, clip))}" for term in terms)


def counted(scene: Scene, terms: Sequence[Term]) -> str:
    """Counts by term: "beep 2, ba 0"."""
    return ", ".join(f"{short(term)} {scene.count(term)}" for term in terms)
