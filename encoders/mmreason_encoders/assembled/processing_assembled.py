"""Processor of the assembled model: media to tensors, each placeholder to as many tokens as its medium has features."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BatchFeature, ProcessorMixin

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


def _videos(videos: Any) -> list[np.ndarray]:
    """A video is an array uint8 [F, H, W, 3] or a list of pictures; here one, several, or several per text."""
    if videos is None:
        return []
    if isinstance(videos, str):
        raise ValueError(f"got the video path {videos!r}; give decoded frames, an array uint8 [F, H, W, 3]")
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
        audio_encoders: per audio encoder `{"extractor": settings with feature_extractor_type, "tokens": n,
            "seconds": longest clip}`.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_tokens: int = 0,
        audio_encoders: list[dict[str, Any]] | None = None,
        image_token: str = "<|image_pad|>",
        video_token: str = "<|video_pad|>",
        audio_token: str = "<|audio_pad|>",
        chat_template: str | None = None,
    ) -> None:
        self.image_tokens = image_tokens
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
            *audio,
        ]

    @property
    def sampling_rate(self) -> int | None:
        """Hz of the waveforms that the audio encoders want; None without audio encoders."""
        return self._extractors[0].sampling_rate if self._extractors else None

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts with one placeholder per medium -> ids with one placeholder per feature, and the media tensors.

        Args:
            images: PIL pictures, in order of their placeholders over all texts (flat or nested by text).
            videos: arrays uint8 [F, H, W, 3], likewise.
            audio: mono waveforms float [S] at `sampling_rate`, likewise.
            kwargs: of the tokenizer, any of TEXT_KEYS.

        Raises:
            ValueError: placeholders and media differ in number, or a medium this model cannot take.
        """
        unknown = sorted(set(kwargs) - set(TEXT_KEYS))
        if unknown:
            raise ValueError(f"unknown processor arguments {unknown}; allowed are {list(TEXT_KEYS)}")
        texts = [text] if isinstance(text, str) else list(text or [])
        media: dict[str, torch.Tensor] = {}
        lengths: dict[str, list[int]] = {self.image_token: [], self.video_token: [], self.audio_token: []}
        pictures, films, clips = _flat(images), _videos(videos), _flat(audio)
        if pictures:
            media["pixel_values"] = self._pixels(self.image_processor.fetch_images(pictures))
            lengths[self.image_token] = [self.image_tokens] * len(pictures)
        if films:
            media["pixel_values_videos"] = self._pixels([frame for film in films for frame in film])
            lengths[self.video_token] = [self.image_tokens * len(film) for film in films]
        if clips:
            media |= self._audio(clips, sampling_rate)
            lengths[self.audio_token] = [sum(spec["tokens"] for spec in self.audio_encoders)] * len(clips)
        encoded = self.tokenizer(self._expand(texts, lengths), **kwargs)
        encoded["mm_token_type_ids"] = [[self._token_type(i) for i in ids] for ids in encoded["input_ids"]]
        encoded.pop("token_type_ids", None)
        return BatchFeature({**encoded, **media}, tensor_type=return_tensors)

    def _token_type(self, token: int) -> int:
        """0 text, 1 image, 2 video, 3 audio: transformers' mm_token_type_ids."""
        return {self.image_token_id: 1, self.video_token_id: 2, self.audio_token_id: 3}.get(token, 0)

    def _expand(self, texts: list[str], lengths: dict[str, list[int]]) -> list[str]:
        for token, counts in lengths.items():
            found = sum(text.count(token) for text in texts)
            if found != len(counts):
                raise ValueError(
                    f"{found} {token} placeholders in the text for {len(counts)} media; give one for each"
                )
        queues = {token: iter(counts) for token, counts in lengths.items()}
        pattern = re.compile("|".join(re.escape(token) for token in lengths))
        return [pattern.sub(lambda match: match[0] * next(queues[match[0]]), text) for text in texts]

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
