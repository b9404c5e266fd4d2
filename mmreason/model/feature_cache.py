"""What encoders made of media, kept by content: the newest within a bound of bytes."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


@dataclass(frozen=True)
class Made:
    """What an encoder made of one medium: tensors whose rows (dim 0) are the medium's own.

    Example: `Made(BaseModelOutput, {"last_hidden_state": [x]})` with x [1, T, D].
    """

    kind: type  # of the encoder's output
    fields: dict[
        str, list[torch.Tensor]
    ]  # by the output's field; one tensor, or one for each of several layers

    @property
    def bytes(self) -> int:
        """Bytes held; a tensor that stands in two fields is there once."""
        each = {id(t): t for parts in self.fields.values() for t in parts}
        return sum(t.numel() * t.element_size() for t in each.values())

    def by_itself(self) -> Made:
        """Tensors of its own: a part of a larger one would keep all of that."""
        own: dict[tuple[int, int], torch.Tensor] = {}

        def alone(x: torch.Tensor) -> torch.Tensor:
            place = x.data_ptr(), x.numel()
            if place not in own:
                whole = x.untyped_storage().nbytes() == x.numel() * x.element_size()
                own[place] = x if whole else x.clone()
            return own[place]

        return Made(self.kind, {field: [alone(x) for x in parts] for field, parts in self.fields.items()})


class FeatureCache:
    """The latest features, by (encoder's fingerprint, medium's digest), within `max_bytes`.

    Example: `cache.get(("tower", "picture"))` is a `Made`, or None.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._made: OrderedDict[tuple[str, str], Made] = OrderedDict()
        # of each encoder, whole and without its projectors: what its weights were last time, and their name
        self._weights: WeakKeyDictionary[nn.Module, dict[int, tuple[Any, str]]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._made)

    def get(self, key: tuple[str, str]) -> Made | None:
        """What is known of a medium, now the latest."""
        made = self._made.get(key)
        if made is not None:
            self._made.move_to_end(key)
        return made

    def put(self, key: tuple[str, str], made: Made) -> None:
        """Keep it, and forget the oldest beyond the bound; one that is larger than the bound is not kept."""
        self._drop(key)
        if made.bytes > self.max_bytes:
            return
        self._made[key] = made
        self.bytes += made.bytes
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._made)))

    def _drop(self, key: tuple[str, str]) -> None:
        made = self._made.pop(key, None)
        self.bytes -= 0 if made is None else made.bytes

    def owner(self, encoder: nn.Module, without: Iterable[nn.Module] = ()) -> str:
        """Names an encoder whose weights stay as they are, by those and by its settings: a copy has the same name.

        `without` are parts of it whose weights do not matter.
        """
        held = own_tensors(encoder, without)
        now = versions(held), settings(encoder)
        known = self._weights.setdefault(encoder, {}).get(len(held))
        if known is None or known[0] != now:
            known = now, digest(held.values(), f"{now[1]} {list(held)}")
            self._weights[encoder][len(held)] = known
        return known[1]

    def clear(self) -> None:
        """Forget all features."""
        self._made.clear()
        self.bytes = 0

    def forget(self, owner: str) -> None:
        """Drop all of an encoder's features."""
        for key in [key for key in self._made if key[0] == owner]:
            self._drop(key)


def own_tensors(encoder: nn.Module, without: Iterable[nn.Module] = ()) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, those of the parts `without` left out."""
    aside = {id(t) for part in without for t in (*part.parameters(), *part.buffers())}
    everything = (*encoder.named_parameters(), *encoder.named_buffers())
    return {name: t for name, t in everything if id(t) not in aside}


def versions(tensors: Mapping[str, torch.Tensor]) -> int:
    """A number that changes with every change of the tensors in place."""
    return hash(tuple((id(t), t._version) for t in tensors.values()))


def settings(encoder: nn.Module) -> str:
    """What beside weights decides what an encoder makes: its config, and its adapters that are on."""
    config = getattr(encoder, "config", None)
    told = json.dumps(config.to_dict(), sort_keys=True, default=str) if config is not None else ""
    adapters = [
        (name, module.disable_adapters, module.merged, list(module.active_adapters))
        for name, module in encoder.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    return f"{type(encoder).__name__} {told} {adapters}"


def digest(tensors: Iterable[torch.Tensor], more: str = "") -> str:
    """A name of the tensors' content, type, shape and order."""
    made = hashlib.sha256(more.encode())
    for tensor in tensors:
        made.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        made.update(plain.view(torch.uint8).numpy().data if plain.numel() else b"")
    return made.hexdigest()
