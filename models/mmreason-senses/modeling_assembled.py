"""The assembled model: features of a vision tower and of audio encoders, projected into a causal LLM's input.

Shapes: B rows, L tokens, N media, T tokens per medium, D width of an encoder, H width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_assembled import AssembledConfig
from .features_assembled import (
    AssembledProjector,
    TimeEmbedding,
    frequency_patches,
    merge_frames,
    merge_moments,
    merge_patches,
    with_before,
)


def encoder_part(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a tower that makes features: the encoder of an encoder-decoder (Whisper), else all of it."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


class AssembledForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Any vision tower, any audio encoders, any causal LLM; features replace placeholder tokens in order.

    Args of the constructor: parts that are built already (`vision_tower`, `audio_towers`, `language_model`) keep
    their weights; a part that is not given is built fresh from the config.
    """

    config_class = AssembledConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(
        self,
        config: AssembledConfig,
        vision_tower: PreTrainedModel | None = None,
        audio_towers: Sequence[PreTrainedModel] | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        for part in (vision_tower, *(audio_towers or []), language_model):
            for module in part.modules() if part is not None else ():
                module._is_hf_initialized = True  # post_init must not draw its weights again
        dtype = (
            torch.get_default_dtype()
        )  # the dtype from_pretrained asked for, not the one a part was saved in
        if vision_tower is None and config.vision_config is not None:
            vision_tower = AutoModel.from_config(config.vision_config, dtype=dtype)
        if audio_towers is None:
            configs = [config.audio_config(i) for i in range(len(config.audio_configs))]
            audio_towers = [encoder_part(AutoModel.from_config(c, dtype=dtype)) for c in configs]
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype)
        width = language_model.config.hidden_size
        hidden = config.projector_hidden or width
        self.vision_tower = vision_tower
        self.vision_projector = None
        if vision_tower is not None:
            merged = vision_tower.config.hidden_size * config.spatial_merge**2
            self.vision_projector = AssembledProjector(merged, hidden, width)
        self.video_projector = None
        frames = config.temporal_merge * (config.temporal_context + 1)
        if vision_tower is not None and frames > 1:
            self.video_projector = AssembledProjector(merged * frames, hidden, width)
        self.audio_towers = nn.ModuleList(audio_towers)
        self.audio_projectors = nn.ModuleList(
            AssembledProjector(
                tower.config.hidden_size * frequency_patches(tower.config) * merge, hidden, width
            )
            for tower, merge in zip(audio_towers, config.audio_merge, strict=True)
        )
        self.time_embedding = TimeEmbedding(width) if config.time_embedding else None
        self.language_model = language_model
        self.post_init()

    @property
    def media_names(self) -> dict[str, tuple[int, int, int]]:
        """Media argument of forward -> (placeholder id, rows of that tensor, placeholder tokens of so many rows)."""
        config = self.config
        names = {}
        if self.vision_tower is not None:
            names["pixel_values"] = (config.image_token_id, 1, config.image_tokens)
            film = (config.video_token_id, config.temporal_merge, config.image_tokens)
            names |= {"pixel_values_videos": film, "video_times": film}
        if config.audio_names:
            clip = (config.audio_token_id, 1, sum(config.audio_tokens))
            names |= dict.fromkeys([*config.audio_names, "audio_order"], clip)
        return names

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self, modality: str | None = None) -> nn.Module:
        return self.language_model.get_decoder() if modality is None else super().get_decoder(modality)

    def _patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, S, S] -> merged hidden states [N, image_tokens, D]."""
        if self.vision_tower is None:
            raise ValueError(
                "this model has no vision tower; it got pixel_values; give it text and audio only"
            )
        hidden = self.vision_tower(pixel_values.to(self.vision_tower.dtype)).last_hidden_state
        merge = self.config.spatial_merge
        return merge_patches(hidden[:, -self.config.image_tokens * merge**2 :], merge)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Pictures or video frames [N, 3, S, S] -> features in the LLM's space [N, image_tokens, H]."""
        patches = self._patches(pixel_values)
        assert self.vision_projector is not None
        return self.vision_projector(patches)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_times: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Video frames [F, 3, S, S], of each video a multiple of temporal_merge -> [F / merge, image_tokens, H].

        Raises:
            ValueError: temporal_context without `video_times` [F], which tell where a video ends.
        """
        if self.video_projector is None:
            return self.get_image_features(pixel_values_videos)
        merge, context = self.config.temporal_merge, self.config.temporal_context
        frames = merge_frames(self._patches(pixel_values_videos), merge)
        if context:
            if video_times is None:
                raise ValueError(
                    f"temporal_context {context} needs to know where each video begins; got frames without "
                    "video_times: give the moments that this model's processor makes"
                )
            frames = with_before(frames, video_times[::merge], context)
        return self.video_projector(frames)

    def get_audio_features(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The clips as every encoder wants them, each [N, ...] -> [N, sum(audio_tokens), H].

        Encoder after encoder, the features of each in time order, evenly over its window.
        """
        if len(features) != len(self.audio_towers):
            raise ValueError(
                f"{len(features)} audio inputs for {len(self.audio_towers)} audio encoders; give one each"
            )
        encoded = [
            projector(merge_moments(tower(x.to(self.dtype)).last_hidden_state, tower.config, merge))
            for x, tower, projector, merge in zip(
                features, self.audio_towers, self.audio_projectors, self.config.audio_merge, strict=True
            )
        ]
        return torch.cat(encoded, dim=1)

    def embed(self, input_ids: torch.Tensor, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token embeddings [B, L, H] whose placeholders are replaced by `features` (kind -> [N, T, H]) in order.

        Raises:
            ValueError: a kind has more or fewer placeholder tokens than features.
        """
        embeds = self.get_input_embeddings()(input_ids)
        tokens = {
            "image": self.config.image_token_id,
            "video": self.config.video_token_id,
            "audio": self.config.audio_token_id,
        }
        for kind, token in tokens.items():
            if token is None:
                continue
            mask = input_ids.eq(token)
            placeholders, values = int(mask.sum()), features.get(kind)
            count = 0 if values is None else values.shape[0] * values.shape[1]
            if placeholders != count:
                media = "none" if values is None else f"{values.shape[0]} of {values.shape[1]} features each"
                raise ValueError(
                    f"{placeholders} {kind} placeholder tokens in input_ids for {count} {kind} features "
                    f"(media: {media}); the two must be equal: render prompts with this model's processor"
                )
            if values is not None:
                embeds = embeds.masked_scatter(mask.unsqueeze(-1), values.to(embeds.dtype))
        return embeds

    def encode(
        self,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        audio: Sequence[torch.Tensor | None] = (),
        video_times: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Media tensors -> kind -> features [N, T, H]; a kind without media is left out."""
        features = {}
        if pixel_values is not None:
            features["image"] = self.get_image_features(pixel_values)
        if pixel_values_videos is not None:
            features["video"] = self.get_video_features(pixel_values_videos, video_times)
        given = [x for x in audio if x is not None]
        if given:
            features["audio"] = self.get_audio_features(given)
        return features

    def place(
        self,
        features: dict[str, torch.Tensor],
        video_times: torch.Tensor | None = None,
        audio_order: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """What `encode` made, with its moment added to every feature and sound in the order of its placeholders.

        Args:
            video_times: float [F], seconds of the frames; None: no moment is added to them.
            audio_order: int64 [N, sum(audio_tokens)], for each placeholder of a clip the feature that it stands for;
                None: the encoders' own order.
        """
        placed = dict(features)
        if self.time_embedding is not None and "video" in placed and video_times is not None:
            moments = video_times.view(-1, self.config.temporal_merge).float().mean(dim=1)
            placed["video"] = placed["video"] + self.time_embedding(moments).unsqueeze(1)
        if self.time_embedding is not None and "audio" in placed:
            moments = torch.tensor(self.config.audio_moments, device=placed["audio"].device)
            placed["audio"] = placed["audio"] + self.time_embedding(moments)
        if audio_order is not None and "audio" in placed:
            order = audio_order.unsqueeze(-1).expand_as(placed["audio"])
            placed["audio"] = placed["audio"].gather(1, order)
        return placed

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values_videos: torch.Tensor | None = None,
        video_times: torch.Tensor | None = None,
        audio_order: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Causal LM over text and media.

        Args:
            input_ids: [B, L], placeholders already expanded to one token per feature.
            pixel_values: [N, 3, S, S], the rows' pictures in order; `pixel_values_videos` the same for video frames.
            video_times: [F], when those frames are shown, in seconds.
            input_features_0, input_features_1 ...: clips [N, ...] as each audio encoder's extractor makes them.
            audio_order: [N, sum(audio_tokens)], which feature of a clip each of its placeholders stands for.
            mm_token_type_ids: accepted for the common interface; the ids alone decide here.
        """
        audio = [kwargs.pop(name, None) for name in self.config.audio_names]
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            features = self.encode(pixel_values, pixel_values_videos, audio, video_times)
            inputs_embeds = self.embed(input_ids, self.place(features, video_times, audio_order))
        elif any(x is not None for x in (pixel_values, pixel_values_videos, *audio)):
            raise ValueError("inputs_embeds already hold the features; give media with input_ids instead")
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.LongTensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Media go in with the prompt only; later steps find their keys and values in the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        inputs.pop("mm_token_type_ids", None)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in self.media_names:
                inputs.pop(name, None)
        return inputs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        # the audio arguments depend on the config, so forward's signature cannot name them
        names = set(self.config.audio_names)
        super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in names})

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """Repeat every row with all of its media: a row may hold several, so dim 0 of media is not the batch."""
        media = {n: model_kwargs.pop(n) for n in self.media_names if model_kwargs.get(n) is not None}
        if expand_size > 1 and media:
            assert input_ids is not None, "media go with input_ids"
            for name, tensor in media.items():
                token, length, tokens = self.media_names[name]
                counts = (input_ids.eq(token).sum(dim=1) // tokens * length).tolist()
                rows = tensor.split(counts)
                media[name] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | media
