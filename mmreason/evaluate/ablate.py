"""The same questions asked again: a medium blanked, the sound shifted in time, one encoder deaf; or with letters.

Everything happens on copies. Blank is a black picture, black frames, or silence: the number of tokens and all words
stay, so that a question differs in what is to be seen or heard and in nothing else. With letters the medium stays, and
the options get letters (`evaluate.letters`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmreason.evaluate.letters import lettered
from mmreason.evaluate.measures import blind_scores, summarise
from mmreason.evaluate.rows import EvalRow
from mmreason.evaluate.store import compare
from mmreason.types import DecodedMedium, MediaKind, Rendered, Sample

BLANKED: tuple[MediaKind, ...] = ("image", "video", "audio")
LETTERS = "letters"
ALLOWED = "image, video, audio, sound_shift=SECONDS, audio_encoder=NUMBER, letters"
RenderPrompt = Callable[[Sample, Sequence[DecodedMedium]], Rendered]


@dataclass(frozen=True)
class Ablation:
    """What is taken away. `value` is seconds for `sound_shift`, a number from 0 on for `audio_encoder`.

    Example: `Ablation("sound_shift=1.0", "sound_shift", 1.0)`.
    """

    name: str  # as it was asked for
    kind: Literal["image", "video", "audio", "sound_shift", "audio_encoder", "letters"]
    value: float = 0.0

    def touches(self, sample: Sample) -> bool:
        """Whether the row has what is taken away: the medium; a video with sound; options named in the question."""
        if self.kind == LETTERS:
            return lettered(sample) is not None
        if self.kind == "sound_shift":
            return sample.modality == "av" and _has(sample, "audio")
        return _has(sample, "audio" if self.kind == "audio_encoder" else self.kind)


def parse_ablation(text: str) -> Ablation:
    """`image`, `video`, `audio`, `sound_shift=1.0`, `audio_encoder=0` or `letters`.

    Raises:
        ValueError: anything else; names what is allowed.
    """
    name, _, value = text.partition("=")
    if name in BLANKED and "=" not in text:
        return Ablation(text, name)
    if text == LETTERS:
        return Ablation(text, "letters")
    if name == "sound_shift":
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if math.isfinite(seconds) and seconds:
            return Ablation(text, "sound_shift", seconds)
    if name == "audio_encoder" and value.isdecimal():
        return Ablation(text, "audio_encoder", int(value))
    raise ValueError(f"ablate: got {text!r}; allowed are {ALLOWED}, as in sound_shift=1.0 or audio_encoder=0")


def blanked(medium: DecodedMedium) -> DecodedMedium:
    """A black picture, black frames, or silence, of the same size, times and rate."""
    if medium.image is not None:
        return replace(medium, image=Image.new(medium.image.mode, medium.image.size))
    if medium.frames is not None:
        return replace(medium, frames=np.zeros_like(medium.frames))
    assert medium.waveform is not None
    return replace(medium, waveform=np.zeros_like(medium.waveform))


def shifted(medium: DecodedMedium, seconds: float) -> DecodedMedium:
    """The same sound `seconds` later; what leaves at one end comes back at the other, so that nothing is lost.

    Example: 4 s of sound with a beep at 3.5 s, shifted by 1.0, beep at 0.5 s.

    Raises:
        ValueError: the sound is as long as the shift, or a whole part of it, so that nothing would change.
    """
    assert medium.waveform is not None and medium.sampling_rate is not None
    length = len(medium.waveform)
    steps = round(seconds * medium.sampling_rate)
    if steps % length == 0:
        raise ValueError(
            f"{medium.name}: its sound of {length / medium.sampling_rate:g} s is the same when it is shifted by "
            f"{seconds:g} s; ablate another sound_shift"
        )
    return replace(medium, waveform=np.roll(medium.waveform, steps))


def ablated_media(ablation: Ablation, media: Sequence[DecodedMedium]) -> list[DecodedMedium]:
    """A row's decoded media without what is taken away. `audio_encoder` and `letters` change none."""
    if ablation.kind == "sound_shift":
        return [shifted(m, ablation.value) if m.kind == "audio" else m for m in media]
    return [blanked(m) if m.kind == ablation.kind else m for m in media]


def ablated_prompt(
    ablation: Ablation, sample: Sample, media: Sequence[DecodedMedium], prompt: RenderPrompt
) -> Rendered:
    """The row rendered without what is taken away. One audio encoder alone gets what it makes of silence.

    Raises:
        ValueError: the model has no such encoder, or a sound cannot be shifted so far.
    """
    if ablation.kind != "audio_encoder":
        return prompt(sample, ablated_media(ablation, media))
    rendered = prompt(sample, media)
    heard = sorted(name for name in rendered.media if name.startswith("input_features_"))
    name = f"input_features_{int(ablation.value)}"
    if name not in heard:
        had = (
            f"{len(heard)} of them, numbered from 0" if heard else "no ensemble of them: ablate audio instead"
        )
        raise ValueError(f"ablate {ablation.name}: this model has no such audio encoder; it has {had}")
    silence = prompt(sample, [blanked(m) if m.kind == "audio" else m for m in media])
    return replace(rendered, media={**rendered.media, name: silence.media[name]})


def touched(ablation: Ablation, samples: Sequence[Sample]) -> list[Sample]:
    """The samples that an ablation changes, as they are asked then: with letters, in other words.

    Raises:
        ValueError: there are none.
    """
    chosen = [sample for sample in samples if ablation.touches(sample)]
    if not chosen:
        kinds = ", ".join(sorted({sample.modality for sample in samples})) or "nothing"
        raise ValueError(f"ablate {ablation.name}: no row has that to lose; the rows are of {kinds}")
    if ablation.kind == LETTERS:
        return [again for sample in chosen if (again := lettered(sample)) is not None]
    return chosen


def ablation_block(plain: Sequence[EvalRow], rows: Sequence[EvalRow]) -> dict[str, Any]:
    """What an ablation did to the rows it touches: `summarise(rows)`, and beside it what they were.

    `plain` are all rows that were evaluated, touched or not: blind guessing is judged on them, since the best constant
    answer of the few that are asked again follows their noise.

    Keys added: `plain` (`{overall, by_modality}` of the same questions untouched) and `delta`
    (`compare`: ablated minus plain, paired).
    """
    asked = {(row.source, row.id) for row in rows}
    whole = [row for row in plain if (row.source, row.id) in asked]
    blind = blind_scores(plain)
    before = summarise(whole, blind)
    same = {(row.source, row.id, row.solution) for row in whole}
    unchanged = all((row.source, row.id, row.solution) in same for row in rows)
    return {
        **summarise(rows, blind if unchanged else None),
        "plain": {key: before[key] for key in ("overall", "by_modality")},
        "delta": compare(whole, rows),
    }


def ablation_lines(ablations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each ablation and modality: {name, modality, n, chance, plain, ablated, delta}; shares 0..1.

    `delta` is {mean, low, high, n}, None where no row could be verified.
    """
    out = []
    for name, block in ablations.items():
        for modality, after in block["by_modality"].items():
            before = block["plain"]["by_modality"][modality]
            delta = (block["delta"].get("by_modality") or {}).get(modality)
            line = {"name": name, "modality": modality, "n": after["n"], "chance": before["chance"]}
            out.append({**line, "plain": before["accuracy"], "ablated": after["accuracy"], "delta": delta})
    return out


def _has(sample: Sample, kind: str) -> bool:
    return any(ref.kind == kind for ref in sample.media)
