"""Build a multimodal model from parts: encoders, projectors and a causal LLM, pretrained or fresh from a config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from mmreason.model.save import quiet
from mmreason.model.tokenizer import MEDIA_TOKENS, add_media_tokens, train_tokenizer
from mmreason.schema import AssembleConfig

ARCHITECTURE = "mmreason_assembled"
INIT_KEYS = ("initializer_range", "init_std")  # the names that transformers configs give the same thing
# what the recipe and the model's config call the same
SHARED_KEYS = (
    "spatial_merge",
    "temporal_merge",
    "temporal_context",
    "time_embedding",
    "projector_hidden",
    "initializer_range",
)
AUDIO_TYPES = ("whisper", "audio-spectrogram-transformer")
# only the encoder of an encoder-decoder is used; building it must not cost a large decoder
NO_DECODER = {
    **{
        "decoder_layers": 1,
        "decoder_attention_heads": 1,
        "decoder_ffn_dim": 8,
        "max_target_positions": 8,
        "vocab_size": 8,
    },
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}


def assemble(
    cfg: AssembleConfig,
    *,
    texts: Callable[[], Iterable[str]],
    dtype: torch.dtype,
    attention: str,
    remote: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """An assembled model and its processor; weights that are not pretrained are drawn from torch's global RNG.

    Raises:
        ValueError: a part is unknown, does not fit another, or the plugin with the architecture is not loaded.
    """
    if ARCHITECTURE not in CONFIG_MAPPING:
        raise ValueError(
            f"no architecture {ARCHITECTURE!r} is registered; plugins must list mmreason_encoders"
        )
    if cfg.vision is None and not cfg.audio:
        raise ValueError("model.assemble has neither vision nor audio; give at least one encoder")
    options = {"dtype": dtype, "attn_implementation": attention}
    tokenizer = _tokenizer(cfg, texts, remote)
    llm = _language_model(cfg, tokenizer, options, remote)
    vision = _vision_tower(cfg, options, remote)
    merges = [_audio_merge(entry) for entry in cfg.audio]
    audio, specs = _audio_towers(cfg, merges, options, remote)
    image_processor, image_tokens, size = _image_side(cfg, vision, remote)
    image_tokens = _merged(image_tokens, cfg.spatial_merge)
    config = AutoConfig.for_model(
        ARCHITECTURE,
        vision_config=None if vision is None else vision.config,
        audio_configs=[tower.config.to_dict() for tower in audio],
        text_config=llm.config,
        **{
            f"{kind}_token_id": tokenizer.convert_tokens_to_ids(token) for kind, token in MEDIA_TOKENS.items()
        },
        image_size=size,
        image_tokens=image_tokens,
        audio_tokens=[spec["tokens"] for spec in specs],
        audio_merge=merges,
        audio_seconds=[spec["seconds"] for spec in specs],
        **{key: getattr(cfg, key) for key in SHARED_KEYS},
        dtype=dtype,
        attn_implementation=attention,
    )
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    model = model_class(config, vision_tower=vision, audio_towers=audio, language_model=llm).to(dtype)
    processor = PROCESSOR_MAPPING[type(config)](
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_tokens=image_tokens,
        temporal_merge=cfg.temporal_merge,
        audio_encoders=specs,
        chat_template=tokenizer.chat_template,
    )
    return model, processor


@contextmanager
def fetching(name: str, key: str) -> Iterator[None]:
    """Name the model and the recipe key in the error of a folder or hub name that cannot be read."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{key} {name!r} is neither a folder with a model nor a name that can be fetched from the hub: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _tokenizer(
    cfg: AssembleConfig, texts: Callable[[], Iterable[str]], remote: bool
) -> PreTrainedTokenizerBase:
    path = cfg.tokenizer.path or cfg.llm.get("pretrained")
    if path is None:
        return train_tokenizer(texts(), cfg.tokenizer.vocab_size, whole_words=cfg.tokenizer.whole_words)
    with fetching(path, "the tokenizer of model.assemble"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=remote)
    add_media_tokens(tokenizer)
    return tokenizer


def _fresh_config(
    entry: dict[str, Any], part: str, initializer_range: float, **defaults: Any
) -> PreTrainedConfig:
    """The transformers config of a part; `defaults` fill keys that its class knows and the recipe left out."""
    given = dict(entry)
    model_type = given.pop("model_type", None)
    if model_type is None or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model.assemble.{part} has model_type {model_type!r}, which transformers does not know; give "
            "{pretrained: NAME_OR_PATH} or a transformers config with its model_type"
        )
    config_class = CONFIG_MAPPING[model_type]
    known = config_class()
    for key, value in {**dict.fromkeys(INIT_KEYS, initializer_range), **defaults}.items():
        if hasattr(known, key) and key not in given:
            given[key] = value
    return config_class(**given)


def _load(
    loader: Any, entry: dict[str, Any], part: str, options: dict[str, Any], remote: bool, **more: Any
) -> Any:
    """`loader.from_pretrained` of a part, refused when the checkpoint lacks some of the part's weights."""
    extra = sorted(set(entry) - {"pretrained"})
    if extra:
        raise ValueError(
            f"model.assemble.{part} has {extra} beside pretrained; a pretrained part brings its own config"
        )
    with fetching(entry["pretrained"], f"model.assemble.{part}"), quiet():
        model, info = loader.from_pretrained(
            entry["pretrained"], output_loading_info=True, trust_remote_code=remote, **options, **more
        )
    if info["missing_keys"]:
        raise ValueError(
            f"model.assemble.{part}: {entry['pretrained']} lacks the weights {sorted(info['missing_keys'])[:5]} of "
            f"{type(model).__name__}; give a checkpoint that holds this part"
        )
    return model


def _language_model(
    cfg: AssembleConfig, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], remote: bool
) -> PreTrainedModel:
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if "pretrained" in cfg.llm:
        llm = _load(AutoModelForCausalLM, cfg.llm, "llm", options, remote)
        if len(tokenizer) > llm.get_input_embeddings().num_embeddings:
            llm.resize_token_embeddings(len(tokenizer))
        return llm
    config = _fresh_config(
        cfg.llm, "llm", cfg.initializer_range, vocab_size=len(tokenizer), bos_token_id=None, **special
    )
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"model.assemble.llm has vocab_size {config.vocab_size}; the tokenizer needs {len(tokenizer)}"
        )
    return AutoModelForCausalLM.from_config(config, **options)


def _vision_tower(cfg: AssembleConfig, options: dict[str, Any], remote: bool) -> PreTrainedModel | None:
    if cfg.vision is None:
        return None
    pretrained = "pretrained" in cfg.vision
    if pretrained:
        with fetching(cfg.vision["pretrained"], "model.assemble.vision"):
            whole = AutoConfig.from_pretrained(cfg.vision["pretrained"], trust_remote_code=remote)
        config = getattr(whole, "vision_config", whole)  # CLIP and SigLIP checkpoints hold a text tower too
    else:
        config = _fresh_config(cfg.vision, "vision", cfg.initializer_range, image_size=cfg.image_size)
    if config.model_type.startswith("siglip"):
        config.vision_use_head = False  # the pooling head makes nothing that we use
    if pretrained:
        return _load(AutoModel, cfg.vision, "vision", options, remote, config=config)
    return AutoModel.from_config(config, **options)


def _audio_towers(
    cfg: AssembleConfig, merges: list[int], options: dict[str, Any], remote: bool
) -> tuple[list[PreTrainedModel], list[dict[str, Any]]]:
    """The audio encoders and, for each, the processor's entry."""
    entries = [{key: value for key, value in entry.items() if key != "audio_merge"} for entry in cfg.audio]
    towers = [_audio_tower(entry, cfg, options, remote) for entry in entries]
    specs = [
        _audio_side(entry, tower.config, merge, remote)
        for entry, tower, merge in zip(entries, towers, merges, strict=True)
    ]
    return towers, specs


def _audio_tower(
    entry: dict[str, Any], cfg: AssembleConfig, options: dict[str, Any], remote: bool
) -> PreTrainedModel:
    if "pretrained" in entry:
        model = _load(AutoModel, entry, "audio", options, remote)
        _check_audio(model.config.model_type)
    else:
        config = _fresh_config(entry, "audio", cfg.initializer_range, **NO_DECODER)
        _check_audio(config.model_type)
        model = AutoModel.from_config(config, **options)
    if not model.config.is_encoder_decoder:
        return model
    encoder = model.get_encoder()
    encoder.config.update(NO_DECODER)
    return encoder


def _check_audio(model_type: str) -> None:
    if model_type not in AUDIO_TYPES:
        raise ValueError(
            f"model.assemble.audio has model_type {model_type!r}; allowed are {list(AUDIO_TYPES)}"
        )


def _image_side(cfg: AssembleConfig, tower: PreTrainedModel | None, remote: bool) -> tuple[Any, int, int]:
    """Image processor, tokens per picture, and pixels a side."""
    if tower is None:
        return _square_processor(cfg.image_size), 0, cfg.image_size
    config: Any = tower.config
    size: Any = getattr(config, "image_size", None)
    patch = getattr(config, "patch_size", None)
    tokens = (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else 0
    hidden = None
    if tokens:
        with torch.no_grad():
            hidden = tower(torch.zeros(1, 3, size, size, dtype=tower.dtype)).last_hidden_state
    if hidden is None or hidden.ndim != 3 or hidden.shape[1] < tokens:
        made = None if hidden is None else list(hidden.shape)
        raise ValueError(
            f"model.assemble.vision {config.model_type!r} has image_size {size} and patch_size {patch} and makes "
            f"features {made}; a tower with one feature per square patch is needed, such as SigLIP, CLIP, ViT or DINOv2"
        )
    pretrained = (cfg.vision or {}).get("pretrained")
    processor = _square_processor(size)
    if pretrained is not None:
        own = AutoImageProcessor.from_pretrained(pretrained, trust_remote_code=remote)
        # the whole picture at the tower's size, never its centre crop: answers may lie at the edge
        processor.image_mean, processor.image_std = own.image_mean, own.image_std
        processor.resample = own.resample
    return processor, tokens, size


def _merged(tokens: int, merge: int) -> int:
    """Tokens of the LLM per picture once squares of patches are merged."""
    side = math.isqrt(tokens)
    if side % merge:
        raise ValueError(
            f"model.assemble.spatial_merge is {merge}; the tower has {side} x {side} patches, so it may be one of "
            f"{[m for m in range(1, side + 1) if side % m == 0]}"
        )
    return tokens // merge**2


def _square_processor(size: int) -> Any:
    return SiglipImageProcessor(size={"height": size, "width": size})


def _audio_merge(entry: dict[str, Any]) -> int:
    merge = entry.get("audio_merge", 1)
    if type(merge) is not int or merge < 1:
        raise ValueError(
            f"model.assemble.audio has audio_merge {merge!r}; a whole number from 1 on is needed"
        )
    return merge


def _audio_side(entry: dict[str, Any], config: Any, merge: int, remote: bool) -> dict[str, Any]:
    """The processor's entry for one audio encoder: extractor settings, tokens per clip, seconds per clip."""
    if config.model_type == "whisper":  # two frames, one every 10 ms, make one hidden state
        moments, seconds = config.max_source_positions, config.max_source_positions / 50
        if seconds % 1:
            raise ValueError(
                f"model.assemble.audio: max_source_positions {config.max_source_positions} is not a whole number of "
                "seconds; give a multiple of 50"
            )
        fresh = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=int(seconds))
    else:  # frames of 25 ms, one every 10 ms; all frequencies of a moment are one
        moments = (config.max_length - config.patch_size) // config.time_stride + 1
        seconds = config.max_length * 0.01 + 0.015
        fresh = ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    if moments % merge:
        raise ValueError(
            f"model.assemble.audio: audio_merge is {merge}; this {config.model_type} makes {moments} moments of "
            f"{seconds:g} s, so it may be one of {[m for m in range(1, moments + 1) if moments % m == 0]}"
        )
    extractor = fresh
    if "pretrained" in entry:
        extractor = AutoFeatureExtractor.from_pretrained(entry["pretrained"], trust_remote_code=remote)
    return {"extractor": extractor.to_dict(), "tokens": moments // merge, "seconds": seconds}
