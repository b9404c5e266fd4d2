"""What processors made of the latest media, for the next question on the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from mmreason.types import DecodedMedium

KEPT_BYTES = 128 * 2**20


@dataclass(frozen=True)
class _Made:
    media: tuple[DecodedMedium, ...]  # held, so that no other medium takes their identity
    ids: list[int]
    tensors: dict[str, torch.Tensor]

    @property
    def bytes(self) -> int:
        tensors = sum(t.numel() * t.element_size() for t in self.tensors.values())
        return tensors + sum(m.bytes for m in self.media)


class RecentMedia:
    """Ids and tensors of the text up to its last placeholder, by that text and the very media objects.

    The text behind the last placeholder is tokenised apart. That a tokenizer gives the same ids for it is seen when
    an entry is put; one that does not (it may set a blank before every text) is never given an entry.

    Example: `recent.get("<m>how many?", (picture,), ["<m>"])` is `(ids, tensors, "how many?")`, or None.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, tuple[int, ...]], _Made] = OrderedDict()
        self._bytes = 0

    def get(
        self, text: str, media: Sequence[DecodedMedium], placeholders: Iterable[str]
    ) -> tuple[list[int], dict[str, torch.Tensor], str] | None:
        """What is known of these media behind the same text, and the text that is left to be tokenised."""
        cut = _cut(text, placeholders)
        made = self._made.get((text[:cut], tuple(map(id, media))))
        return None if made is None else (list(made.ids), dict(made.tensors), text[cut:])

    def put(
        self,
        text: str,
        media: Sequence[DecodedMedium],
        placeholders: Iterable[str],
        ids: Sequence[int],
        tensors: dict[str, torch.Tensor],
        tokenise: Callable[[str], list[int]],
    ) -> None:
        """Remember `ids` and `tensors` of `text` with `media`, and forget the oldest beyond KEPT_BYTES."""
        cut = _cut(text, placeholders)
        rest = tokenise(text[cut:]) if text[cut:] else []
        head = list(ids[: len(ids) - len(rest)])
        if [*head, *rest] != list(ids):
            return
        key, made = (text[:cut], tuple(map(id, media))), _Made(tuple(media), head, tensors)
        before = self._made.pop(key, None)
        self._made[key] = made
        self._bytes += made.bytes - (0 if before is None else before.bytes)
        while self._bytes > KEPT_BYTES:
            _, old = self._made.popitem(last=False)
            self._bytes -= old.bytes


def _cut(text: str, placeholders: Iterable[str]) -> int:
    """Where the text behind the last placeholder begins."""
    return max(text.rfind(token) + len(token) if token in text else 0 for token in placeholders)
