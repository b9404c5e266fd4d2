"""Configuration of the assembled model: the configs of its parts and how their features meet the text."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


def _as_config(config: PreTrainedConfig | dict[str, Any], part: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    given = dict(config)
    if "model_type" not in given:
        raise ValueError(
            f"{part} has no model_type; got the keys {sorted(given)}; name a transformers architecture"
        )
    return AutoConfig.for_model(given.pop("model_type"), **given)


class AssembledConfig(PreTrainedConfig):
    """Parts, placeholder ids and token counts of an assembled model.

    Args:
        vision_config: transformers config (or its dict with `model_type`) of the vision tower; None: no vision.
        audio_configs: one dict with `model_type` per audio encoder, in the order of their tokens; may be empty.
        text_config: config of the causal LLM.
        image_token_id, video_token_id, audio_token_id: the placeholder that each medium's features replace.
        image_size: pixels a side of every picture and video frame.
        image_tokens: features per picture or frame after merging; the tower's last `image_tokens * spatial_merge**2`
            hidden states are used, which leaves out class and register tokens.
        spatial_merge: side of the square of neighbouring patches that become one feature, their hidden states
            side by side (as Qwen2-VL's patch merger, arXiv 2409.12191); 1: none.
        temporal_merge: frames of a video that become one, their hidden states side by side; 1: none.
        temporal_context: (merged) frames before each one whose hidden states its projector is given too, so that a
            feature can tell what changed; before a video's first frame stands the first itself. 0: none.
        audio_tokens: features per clip of each audio encoder; a clip takes their sum.
        audio_merge: per audio encoder, moments that become one feature, their hidden states side by side.
        audio_seconds: per audio encoder, seconds over which its features are spread evenly.
        time_embedding: a learned signal of the moment in seconds is added to the features of frames and sound.
        projector_hidden: width of the projectors' hidden layer; None: the LLM's width.
        initializer_range: standard deviation of fresh projector weights.
    """

    model_type = "mmreason_assembled"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: PreTrainedConfig | dict[str, Any] | None = None,
        audio_configs: list[dict[str, Any]] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        audio_token_id: int | None = None,
        image_size: int = 64,
        image_tokens: int = 0,
        spatial_merge: int = 1,
        temporal_merge: int = 1,
        temporal_context: int = 0,
        audio_tokens: list[int] | None = None,
        audio_merge: list[int] | None = None,
        audio_seconds: list[float] | None = None,
        time_embedding: bool = False,
        projector_hidden: int | None = None,
        initializer_range: float = 0.05,
        **kwargs: Any,
    ) -> None:
        self.vision_config = None if vision_config is None else _as_config(vision_config, "vision_config")
        self.audio_configs = list(audio_configs or [])
        self.text_config = None if text_config is None else _as_config(text_config, "text_config")
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.image_size = image_size
        self.image_tokens = image_tokens
        self.spatial_merge = spatial_merge
        self.temporal_merge = temporal_merge
        self.temporal_context = temporal_context
        self.audio_tokens = list(audio_tokens or [])
        self.audio_merge = list(audio_merge or [1] * len(self.audio_tokens))
        self.audio_seconds = list(audio_seconds or [1.0] * len(self.audio_tokens))
        self.time_embedding = time_embedding
        self.projector_hidden = projector_hidden
        self.initializer_range = initializer_range
        for name in ("audio_tokens", "audio_merge", "audio_seconds"):
            if len(getattr(self, name)) != len(self.audio_configs):
                raise ValueError(
                    f"{len(self.audio_configs)} audio_configs but {len(getattr(self, name))} {name}; give one for "
                    "every audio encoder"
                )
        super().__init__(**kwargs)

    @property
    def audio_names(self) -> list[str]:
        """The forward argument of each audio encoder: `input_features_0`, `input_features_1` ..."""
        return [f"input_features_{i}" for i in range(len(self.audio_configs))]

    @property
    def audio_moments(self) -> list[float]:
        """The middle of every audio feature in seconds, encoder after encoder."""
        spans = zip(self.audio_tokens, self.audio_seconds, strict=True)
        return [(i + 0.5) * seconds / tokens for tokens, seconds in spans for i in range(tokens)]

    def audio_config(self, index: int) -> PreTrainedConfig:
        """The transformers config of audio encoder `index`, attention implementation as of this config."""
        config = _as_config(self.audio_configs[index], f"audio_configs[{index}]")
        config._attn_implementation = self._attn_implementation
        return config
