"""The recordings that the spoken world is made of: where they lie, who is trained on, and their samples.

They are `{digit}_{speaker}_{index}.wav` of the Free Spoken Digit Dataset (CC BY-SA 4.0,
github.com/Jakobovski/free-spoken-digit-dataset); none of them is part of this project.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmreason.data.media.audio import decode_audio
from mmreason.data.media.limits import MediaError, MediaLimits

VARIABLE = "MMREASON_DATA"
PLACES = (
    "",
    "recordings",
    "fsdd/recordings",
)  # under the folder that is given, the first that has recordings
KNOWN = ("george", "jackson", "lucas")
UNSEEN = ("nicolas",)
DIGITS = 10
HELD_OUT = 5  # the first recordings of every digit and known speaker are the test split
INDICES = 50
RATE = 8_000  # samples a second of the recordings
LONGEST = 10.0  # seconds: a longer file is no spoken digit
SHOWN = 5  # names in one message


@dataclass(frozen=True)
class Take:
    """One recording: who says which digit, and which time it is. Example: `Take(7, "george", 12)`."""

    digit: int
    speaker: str
    index: int

    @property
    def file(self) -> str:
        """Its name on disk: "7_george_12.wav"."""
        return f"{self.digit}_{self.speaker}_{self.index}.wav"


def find_folder(given: str | None) -> str:
    """The folder of the recordings: `given` or else $MMREASON_DATA, or a folder of PLACES in it.

    Raises ValueError when neither is given, or no recording lies there.
    """
    wanted = given or os.environ.get(VARIABLE)
    if not wanted:
        raise ValueError(
            f"world spoken: no folder of recordings; give the source's key `recordings`, or set {VARIABLE}, to the "
            "folder that holds {digit}_{speaker}_{index}.wav of github.com/Jakobovski/free-spoken-digit-dataset"
        )
    for place in PLACES:
        folder = Path(wanted) / place
        if next(folder.glob("[0-9]_*_*.wav"), None) is not None:
            return str(folder)
    said = "recordings" if given else VARIABLE
    raise ValueError(
        f"world spoken: {said} is {wanted!r}, where no recording {{digit}}_{{speaker}}_{{index}}.wav lies; give the "
        f"folder that holds them, or one with them in {' or '.join(PLACES[1:])}"
    )


def takes_of(split: str, speaker: str) -> tuple[Take, ...]:
    """Every recording that a source may use; those of the two splits and of the unseen speaker share none.

    Raises ValueError for training rows of the unseen speaker.
    """
    if speaker == "unseen" and split != "test":
        raise ValueError(f"world spoken: speaker unseen is held out; split is {split!r}, allowed is 'test'")
    voices: tuple[str, ...] = KNOWN
    first, end = 0, HELD_OUT
    if speaker == "unseen":
        voices, end = UNSEEN, INDICES
    elif split == "train":
        first, end = HELD_OUT, INDICES
    return tuple(
        Take(digit, voice, index)
        for voice in voices
        for digit in range(DIGITS)
        for index in range(first, end)
    )


def read_takes(folder: str, takes: Sequence[Take]) -> Mapping[Take, np.ndarray]:
    """Mono float32 [S] at RATE of every recording.

    Raises ValueError naming the files that are missing, damaged or silent.
    """
    missing = [take.file for take in takes if not (Path(folder) / take.file).is_file()]
    if missing:
        raise ValueError(
            f"world spoken: {len(missing)} of {len(takes)} recordings are not in {folder!r}: {_some(missing)}; "
            "download the data set again"
        )
    waves, damaged = {}, []
    limits = MediaLimits(sampling_rate=RATE, max_media_seconds=LONGEST)
    for take in takes:
        try:
            waves[take] = decode_audio((Path(folder) / take.file).read_bytes(), take.file, limits)
        except MediaError as error:
            damaged.append(str(error))
            continue
        if not waves[take].any():
            damaged.append(f"{take.file}: got silence")
    if damaged:
        raise ValueError(
            f"world spoken: {len(damaged)} of {len(takes)} recordings in {folder!r} cannot be used: "
            f"{_some(damaged)}; download them again"
        )
    return waves


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
