"""Whether a model's rows can share their prompt, and by what name they cannot. Decided by what the model is made of."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from mmreason.model.family import bare
from mmreason.model.shared_states import LINEAR, linear_layers
from mmreason.schema import SharedPrefix

# the layer types (LINEAR is the third), and the caches of layers, whose rows can go on from one prompt
FULL, SLIDING = "full_attention", "sliding_attention"
CACHES = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)
# what a config calls a change of the logits behind the head, and the value that changes nothing
AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


@dataclass(frozen=True)
class Unfit:
    """Why rows are computed one by one: a name for metrics, and a sentence for the log.

    Example: `Unfit("dropout", "model.layers.0.self_attn.attention_dropout is 0.1")`.
    """

    name: str
    why: str


def unshareable(model: Any) -> Unfit | None:
    """Why a prompt's keys and values cannot serve several completions of this model; None when they can."""
    whole = bare(model)
    decoder = whole.get_decoder()
    name, config = type(decoder).__name__, decoder.config
    caches = {type(layer) for layer in DynamicCache(config=config).layers}
    strange = set(_kinds(decoder)) - {FULL, SLIDING, LINEAR} or {
        cache.__name__ for cache in caches - set(CACHES)
    }
    if strange:
        return Unfit(
            "layers",
            f"{name} has layers of another kind than full, sliding and linear attention: {sorted(strange)}",
        )
    if not whole._supports_default_dynamic_cache():
        return Unfit("own_cache", f"{type(whole).__name__} keeps a cache of a kind of its own")
    if getattr(config, "cross_attention_layers", None):
        return Unfit("cross_attention", f"{name} looks at media through layers of their own")
    # models with linear layers do not say that they take an attention function from outside; their code tells
    takes = getattr(decoder, "_supports_attention_backend", False) or (
        LinearAttentionLayer in caches and decoder._can_set_attn_implementation()
    )
    if not takes:
        return Unfit("attention_backend", f"{name} takes no attention function from outside")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return Unfit("attention_softcapping", f"{name} caps its attention's logits")
    attentions = _attentions(decoder)
    configs = {id(getattr(m, "config", None)) for m in attentions}
    if configs != {id(config)} or any(hasattr(m, "sinks") for m in attentions):
        return Unfit(
            "own_attention", f"{name} has attention modules that do not follow the decoder's own config"
        )
    if any(hasattr(m, "v_head_dim") for m in attentions):
        return Unfit("latent_attention", f"{name} keeps something else than what its queries meet")
    return None


def _kinds(decoder: Any) -> list[str]:
    """The type of each layer, by the decoder's config; nothing where it does not say."""
    return list(getattr(decoder.config, "layer_types", None) or ())


def _attentions(decoder: Any) -> list[Any]:
    """The modules of full and sliding attention."""
    kinds = _kinds(decoder)
    found = [m for m in decoder.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj")]
    return [m for m in found if not kinds or kinds[m.layer_idx] != LINEAR]


def untrainable(model: Any) -> Unfit | None:
    """Why the training forward of this model cannot share prompts exactly; None when it can.

    A model that is trained with dropout would draw other masks than row by row, and a router's auxiliary loss would
    count the prompt once instead of once a row.
    """
    reason = unshareable(model)
    if reason is not None:
        return reason
    whole = bare(model)
    decoder = whole.get_decoder()
    name, config = type(decoder).__name__, decoder.config
    if None in linear_layers(decoder):
        return Unfit(
            "linear_attention",
            f"{name} has layers of linear attention that go on from no state but a cache's",
        )
    both_ways = not all(getattr(m, "is_causal", True) for m in _attentions(decoder))
    if (
        both_ways
        or getattr(config, "use_bidirectional_attention", None)
        or "token_type_ids" in inspect.signature(whole.forward).parameters
    ):
        return Unfit("both_ways", f"{type(whole).__name__} attends both ways, to what comes later too")
    headless = unscorable(whole)
    if headless is not None:
        return headless
    if getattr(config, "output_router_logits", False):
        return Unfit("router_loss", f"{name} has an auxiliary loss of its router, which counts tokens")
    return _dropout(model)


def unscorable(model: Any) -> Unfit | None:
    """Why the logits of this model are something else than its head of hidden states; None when they are that."""
    whole = bare(model)
    name, config = type(whole).__name__, whole.get_decoder().config
    if whole.get_output_embeddings() is None:
        return Unfit("no_head", f"{name} has no output embeddings")
    changed = [key for key, none in AFTER_THE_HEAD.items() if getattr(config, key, none) not in (None, none)]
    return (
        Unfit("after_the_head", f"{name} changes its logits behind the head: {changed}") if changed else None
    )


def unpackable(model: Any, shared_prefix: SharedPrefix, gathers: bool) -> Unfit | None:
    """Why training pads rows under these settings; None when it packs them. `gathers`: under ZeRO-3."""
    if shared_prefix == "off":
        return Unfit("off", "shared_prefix is off")
    if gathers:
        return Unfit("zero3", "ZeRO-3 has the head's weights only while the model runs")
    return untrainable(model)


def needs_side_by_side(model: Any, family: str, attention: str, unfit: Unfit | None) -> None:
    """Refuse a model that can read rows of several segments neither packed (`unpackable`) nor by a mask.

    Raises:
        ValueError: its rows are padded, and it has positions of its own or attention that takes no mask.
    """
    if unfit is None:
        return
    if family != "assembled":
        raise ValueError(
            f"questions_per_row above 1 needs rows that are packed, or an assembled model; {unfit.why}, and this model "
            f"is {family}, whose positions are its own affair: set questions_per_row to 1"
            + (", or shared_prefix to auto" if unfit.name == "off" else "")
        )
    if linear_layers(bare(model).get_decoder()):
        raise ValueError(
            f"questions_per_row above 1 needs rows that are packed, or an attention that takes masks; {unfit.why}, and "
            "the model has layers of linear attention: set questions_per_row to 1"
            + (", or shared_prefix to auto" if unfit.name == "off" else "")
        )
    if attention == "flash_attention_2":
        raise ValueError(
            f"questions_per_row above 1 needs rows that are packed, or an attention that takes masks; {unfit.why}, and "
            "attn_implementation is flash_attention_2: set it to sdpa, or questions_per_row to 1"
        )


def _dropout(model: nn.Module) -> Unfit | None:
    found = drops(model)
    if found is None:
        return None
    place, rate = found
    return Unfit(
        "dropout",
        f"{place} is {rate}: one prompt for all rows would drop other things than rows by themselves",
    )


def drops(model: nn.Module, *, now: bool = False) -> tuple[str, float] | None:
    """The first place where the model in training drops something at random (dropout, layer drop, drop path), and how
    much of it; with `now`, only where a module is in training at present.
    """
    for name, module in model.named_modules():
        rates = {"p": module.p} if isinstance(module, nn.Dropout) else vars(module)
        for key, rate in rates.items():
            if (key == "p" or "drop" in key) and isinstance(rate, float) and rate > 0:
                if module.training or not now:
                    return f"{name}.{key}".lstrip("."), rate
    return None
