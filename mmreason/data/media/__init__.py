"""Decoding media named by rows: confined to the data root, bounded before decoding, never fetched from the net.

A path is `picture.png`, `folder/clip.mp4`, or `archive.zip#member.wav`; a row may hold the bytes instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmreason.data.media.archive import locate, read_bytes
from mmreason.data.media.audio import check_audio, decode_audio
from mmreason.data.media.image import decode_image, open_image
from mmreason.data.media.limits import MediaError, MediaLimits, limits_of
from mmreason.data.media.video import decode_video, plan_video
from mmreason.types import DecodedMedium, MediumRef

__all__ = [
    "Extent",
    "MediaError",
    "MediaLimits",
    "check",
    "decode",
    "extent_of",
    "limits_of",
    "locate",
    "read_bytes",
]


@dataclass(frozen=True)
class Extent:
    """How large a medium is: pixels of a picture or of all chosen frames, seconds of a sound.

    Example: `Extent(pixels=4096)`.
    """

    pixels: int = 0
    seconds: float = 0.0


def decode(ref: MediumRef, limits: MediaLimits) -> DecodedMedium:
    """The medium as the processor gets it.

    Pictures are upright (EXIF) and RGB, transparency over white. Of a video the frames that qwen-vl-utils would choose
    for `limits.fps` and `limits.max_frames`, with their times. Sound is mono float32 at `limits.sampling_rate`.

    Raises:
        MediaError: the path leads out of the root; the file is missing, too large or too long, torn or damaged; it
            has not what the row says it has.
    """
    data, name = read_bytes(ref, limits), ref.path or "inline bytes"
    if ref.kind == "image":
        medium = DecodedMedium("image", name, image=decode_image(data, name, limits))
        return replace(medium, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    if ref.kind == "audio":
        wave = decode_audio(data, name, limits)
        return DecodedMedium("audio", name, waveform=wave, sampling_rate=limits.sampling_rate)
    frames, plan = decode_video(data, name, limits)
    return DecodedMedium(
        "video",
        name,
        frames=frames,
        timestamps=plan.times,
        frame_indices=plan.indices,
        video_fps=plan.fps,
        total_frames=plan.total,
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
    )


def check(ref: MediumRef, limits: MediaLimits) -> Extent:
    """Read the header (of video and sound: every packet), decode nothing; raises as `decode` for what they tell."""
    data, name = read_bytes(ref, limits), ref.path or "inline bytes"
    if ref.kind == "image":
        width, height = open_image(data, name, limits).size
        return Extent(pixels=width * height)
    if ref.kind == "audio":
        return Extent(seconds=check_audio(data, name, limits))
    plan = plan_video(data, name, limits)
    return Extent(pixels=len(plan.indices) * plan.width * plan.height)


def extent_of(medium: DecodedMedium) -> Extent:
    """How large a decoded medium is."""
    if medium.image is not None:
        return Extent(pixels=medium.image.width * medium.image.height)
    if medium.frames is not None:
        frames, height, width, _ = medium.frames.shape
        return Extent(pixels=frames * height * width)
    assert medium.waveform is not None and medium.sampling_rate
    return Extent(seconds=len(medium.waveform) / medium.sampling_rate)
