"""Processor of the assembled model: media to tensors, each placeholder to as many tokens as its medium has features."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BatchFeature, ProcessorMixin

from .frames_assembled import read_frames

TEXT_KEYS = ("padding", "padding_side", "add_special_tokens", "pad_to_multiple_of", "return_attention_mask")


def _flat(media: Any) -> list[Any]:
    """A medium, a list of media, or a list of lists of media -> one flat list."""
    if media is None:
        return []
    if not isinstance(media, list | tuple):
        return [media]
    return [
        item for entry in media for item in (_flat(entry) if isinstance(entry, list | tuple) else [entry])
    ]


def _videos(videos: Any) -> list[Any]:
    """A video is an array uint8 [F, H, W, 3], a list of pictures or a path; here one, several, or several per text."""
    if videos is None:
        return []
    if isinstance(videos, str | PathLike):
        return [str(videos)]
    if isinstance(videos, np.ndarray | torch.Tensor):
        return [np.asarray(videos)]
    if videos and all(hasattr(frame, "convert") for frame in videos):
        return [np.stack([np.asarray(frame.convert("RGB")) for frame in videos])]
    return [video for entry in videos for video in _videos(entry)]


class AssembledProcessor(ProcessorMixin):
    """Tokenizer, image processor and audio feature extractors of an assembled model.

    Args:
        image_processor: makes [N, 3, S, S] of pictures and of video frames.
        tokenizer: knows the three placeholder tokens.
        image_tokens: tokens per picture or frame; 0: the model has no vision tower.
        temporal_merge: frames of a video that share `image_tokens` tokens.
        audio_encoders: per audio encoder `{"extractor": settings with feature_extractor_type, "tokens": n,
            "seconds": longest clip}`.
        fps, max_frames: how a video that is given as a path is sampled.

    A video placeholder that is directly followed by an audio placeholder is a video with its own sound: the two share
    a clock, and the tokens of each moment lie together, a frame and then what is heard until the next one.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_tokens: int = 0,
        temporal_merge: int = 1,
        audio_encoders: list[dict[str, Any]] | None = None,
        fps: float = 2.0,
        max_frames: int = 16,
        image_token: str = "<|image_pad|>",
        video_token: str = "<|video_pad|>",
        audio_token: str = "<|audio_pad|>",
        chat_template: str | None = None,
    ) -> None:
        self.image_tokens, self.temporal_merge = image_tokens, temporal_merge
        self.fps, self.max_frames = fps, max_frames
        self.audio_encoders = list(audio_encoders or [])
        self.image_token, self.video_token, self.audio_token = image_token, video_token, audio_token
        self.image_token_id, self.video_token_id, self.audio_token_id = tokenizer.convert_tokens_to_ids(
            [image_token, video_token, audio_token]
        )
        self._extractors = [
            getattr(transformers, spec["extractor"]["feature_extractor_type"])(**spec["extractor"])
            for spec in self.audio_encoders
        ]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        """What a batch may hold."""
        audio = [f"input_features_{i}" for i in range(len(self.audio_encoders))]
        return [
            "input_ids",
            "attention_mask",
            "mm_token_type_ids",
            "pixel_values",
            "pixel_values_videos",
            "video_times",
            *audio,
            "audio_order",
        ]

    @property
    def sampling_rate(self) -> int | None:
        """Hz of the waveforms that the audio encoders want; None without audio encoders."""
        return self._extractors[0].sampling_rate if self._extractors else None

    def feature_count(self, kind: str, frames: int = 1) -> int:
        """Tokens of one picture, of a video of `frames` frames, or of a clip of sound."""
        if kind == "audio":
            return sum(spec["tokens"] for spec in self.audio_encoders)
        return self.image_tokens * (-(-frames // self.temporal_merge) if kind == "video" else 1)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        video_times: Sequence[Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts with one placeholder per medium -> ids with one placeholder per feature, and the media tensors.

        Args:
            images: PIL pictures, in order of their placeholders over all texts (flat or nested by text).
            videos: arrays uint8 [F, H, W, 3], lists of pictures, or paths, likewise.
            audio: mono waveforms float [S] at `sampling_rate`, likewise.
            video_times: for each video the seconds at which its frames are shown; None: a path's own, and for frames
                one every 1 / fps seconds.
            kwargs: of the tokenizer, any of TEXT_KEYS.

        Raises:
            ValueError: placeholders and media differ in number, or a medium this model cannot take.
        """
        unknown = sorted(set(kwargs) - set(TEXT_KEYS))
        if unknown:
            raise ValueError(f"unknown processor arguments {unknown}; allowed are {list(TEXT_KEYS)}")
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures, clips = _flat(images), _flat(audio)
        films, times = self._films(_videos(videos), video_times)
        media: dict[str, torch.Tensor] = {}
        if pictures:
            media["pixel_values"] = self._pixels(self.image_processor.fetch_images(pictures))
        if films:
            media["pixel_values_videos"] = self._pixels([frame for film in films for frame in film])
            media["video_times"] = torch.tensor([t for moments in times for t in moments])
        if clips:
            media |= self._audio(clips, sampling_rate)
        expanded, orders = self._expand(texts, len(pictures), times, len(clips))
        if clips:
            media["audio_order"] = torch.tensor(orders)
        encoded = self.tokenizer(expanded, **kwargs)
        encoded["mm_token_type_ids"] = [[self._token_type(i) for i in ids] for ids in encoded["input_ids"]]
        encoded.pop("token_type_ids", None)
        return BatchFeature({**encoded, **media}, tensor_type=return_tensors)

    def _token_type(self, token: int) -> int:
        """0 text, 1 image, 2 video, 3 audio: transformers' mm_token_type_ids."""
        return {self.image_token_id: 1, self.video_token_id: 2, self.audio_token_id: 3}.get(token, 0)

    def _films(
        self, videos: list[Any], video_times: Sequence[Sequence[float]] | None
    ) -> tuple[list[np.ndarray], list[list[float]]]:
        """Frames and their moments; the last frame is repeated until temporal_merge divides their number."""
        films, times = [], []
        for i, video in enumerate(videos):
            frames, moments = video, np.arange(len(video)) / self.fps
            if isinstance(video, str):
                frames, moments = read_frames(video, self.fps, self.max_frames)
            if video_times is not None:
                moments = np.asarray(video_times[i])
            if len(moments) != len(frames):
                raise ValueError(
                    f"{len(moments)} video_times for {len(frames)} frames of video {i}; give one for each"
                )
            kept = list(range(len(frames))) + [len(frames) - 1] * (-len(frames) % self.temporal_merge)
            films.append(np.asarray(frames)[kept])
            times.append([float(moments[k]) for k in kept])
        return films, times

    def _expand(
        self, texts: list[str], images: int, times: list[list[float]], clips: int
    ) -> tuple[list[str], list[list[int]]]:
        """The texts with a token for every feature, and for each clip which feature each of its tokens stands for."""
        counts = {self.image_token: images, self.video_token: len(times), self.audio_token: clips}
        for token, given in counts.items():
            found = sum(text.count(token) for text in texts)
            if found != given:
                raise ValueError(
                    f"{found} {token} placeholders in the text for {given} media; give one for each"
                )
        films, orders = iter(times), list[list[int]]()

        def run(match: re.Match[str]) -> str:
            if match[0] == self.image_token:
                return self.image_token * self.image_tokens
            starts = [] if match[0] == self.audio_token else next(films)[:: self.temporal_merge]
            frame = self.video_token * self.image_tokens
            if match[0] == self.video_token:
                return frame * len(starts)
            chunks = self._heard(starts or [0.0])
            orders.append([feature for chunk in chunks for feature in chunk])
            return "".join(frame * bool(starts) + self.audio_token * len(chunk) for chunk in chunks)

        both = self.video_token + self.audio_token
        tokens = (both, self.image_token, self.video_token, self.audio_token)
        pattern = re.compile("|".join(re.escape(token) for token in tokens))
        return [pattern.sub(run, text) for text in texts], orders

    def _heard(self, starts: list[float]) -> list[list[int]]:
        """For each moment (ascending, in seconds) the audio features from then to the next one, encoder by encoder.

        A feature counts at the middle of its span; those before the first moment go to it.
        """
        chunks: list[list[int]] = [[] for _ in starts]
        first = 0
        for spec in self.audio_encoders:
            for i in range(spec["tokens"]):
                middle = (i + 0.5) * spec["seconds"] / spec["tokens"]
                chunks[max(bisect_right(starts, middle) - 1, 0)].append(first + i)
            first += spec["tokens"]
        return chunks

    def _pixels(self, pictures: list[Any]) -> torch.Tensor:
        if not self.image_tokens:
            raise ValueError(f"this model has no vision tower; got {len(pictures)} pictures or video frames")
        rgb = [picture.convert("RGB") if hasattr(picture, "convert") else picture for picture in pictures]
        return self.image_processor(images=rgb, return_tensors="pt")["pixel_values"]

    def _audio(self, clips: list[Any], sampling_rate: int | None) -> dict[str, torch.Tensor]:
        if not self._extractors:
            raise ValueError(f"this model has no audio encoder; got {len(clips)} audio clips")
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"audio at {sampling_rate} Hz; this model wants {self.sampling_rate} Hz: resample it"
            )
        waves = [np.asarray(clip, dtype=np.float32) for clip in clips]
        seconds = min(spec["seconds"] for spec in self.audio_encoders)
        for i, wave in enumerate(waves):
            if wave.ndim != 1 or len(wave) > seconds * self.sampling_rate:
                raise ValueError(
                    f"audio clip {i} has shape {wave.shape}, {wave.shape[-1] / self.sampling_rate:.2f} s; "
                    f"allowed is mono [S] of at most {seconds:.2f} s: cut it"
                )
        out = {}
        for i, extractor in enumerate(self._extractors):
            made = extractor(waves, sampling_rate=self.sampling_rate, return_tensors="pt")
            out[f"input_features_{i}"] = made[extractor.model_input_names[0]]
        return out
