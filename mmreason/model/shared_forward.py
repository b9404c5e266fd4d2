"""A forward pass up to the head, and the head that scores what it is given: logits of a prompt are never made.

Of rows that share prompts it is one pass over the packed row, equal to a pass over every row by itself in values and
gradients; the prompt and its media are computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mmreason.model.family import Family, bare, media_inputs
from mmreason.model.shared_rows import Packed


def hidden_states(model: Any, family: Family, packed: Packed, device: torch.device) -> torch.Tensor:
    """What the head is given for every token of the packed row [T, hidden], while `attention_of` is open.

    `model` is the one to call (wrapped or not). `head_of(model)` scores them, some at a time.
    """
    inputs = {
        name: x.to(device) for name, x in media_inputs(family, packed.media, packed.token_types).items()
    }
    positions = packed.positions.to(device)
    inputs["input_ids"] = packed.ids.to(device)
    inputs["position_ids"] = positions if len(positions) == 1 else positions.unsqueeze(1)
    return before_head(model, inputs)[0]


def before_head(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the head is given for every token [B, L, hidden]; the model makes logits of a row's first token only."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        kept.append(given[0])
        return (given[0][:, :1], *given[1:])

    hook = head_of(model).register_forward_pre_hook(keep)
    try:
        model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return kept[0]


def head_of(model: Any) -> nn.Module:
    """The module that makes logits of hidden states, of a model that may be wrapped."""
    return bare(getattr(model, "module", model)).get_output_embeddings()
