"""Keys and values of rows that share prompts: each prompt's once, and each row's own behind them.

No columns are copied per row: a row's query meets its prompt's keys where they are, all rows of a prompt in one
product, and one softmax runs over the prompt's scores and the row's own. Rows that end leave, and the last rows take
their places. A layer of linear attention keeps a state instead of columns, and that is copied for each row.

Shapes: P prompts of width W (padded on the left), R rows in decoding, H heads, K key/value heads, D their width, t
tokens that every row has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, LinearAttentionLayer

from mmreason.rollout.budget import capacities

NAME = "mmreason_forked"


class ForkedLayer(CacheLayerMixin):
    """One layer: `prompt_keys`, `prompt_values` [P, K, W, D], and buffers [R, K, capacity, D] of the rows' own.

    `put` takes the prompts in, `fork` makes the buffers.
    """

    def __init__(self, prefilled: DynamicLayer, prompts: int, width: int) -> None:
        super().__init__()
        self.prompt_keys, self.prompt_values = (
            part if len(part) == prompts else part.new_zeros(prompts, part.shape[1], width, part.shape[3])
            for part in (prefilled.keys, prefilled.values)
        )
        self.is_initialized = True
        self.written = 0

    def put(self, start: int, end: int, prefilled: DynamicLayer) -> None:
        """Prompts `start` to `end` (without it), [p, K, w, D] with w <= W, padded on the left."""
        for whole, part in (
            (self.prompt_keys, prefilled.keys),
            (self.prompt_values, prefilled.values),
        ):
            if whole is not part:  # all prompts at once are taken as they are
                whole[start:end, :, -part.shape[2] :] = part

    def fork(self, owner: torch.Tensor, most: int) -> None:
        """Room for the rows, which write up to `most` tokens; `owner` is int64 [R]."""
        self._larger = capacities(most)
        self.keys, self.values = (
            part.new_empty(len(owner), part.shape[1], 0, part.shape[3])
            for part in (self.prompt_keys, self.prompt_values)
        )
        self._grow()

    def _grow(self) -> None:
        """One after the other, so that only one of them is there twice."""
        capacity = self._larger.pop(0)
        self.keys = self._moved(self.keys, capacity)
        self.values = self._moved(self.values, capacity)

    def _moved(self, part: torch.Tensor, capacity: int) -> torch.Tensor:
        """The same in a buffer of `capacity` tokens a row."""
        larger = part.new_empty(*part.shape[:2], capacity, part.shape[3])
        larger[:, :, : part.shape[2]] = part
        return larger

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the rows' newest [R, K, 1, D]; returns the rows' own so far, views [R, K, t, D]."""
        if self.written == self.keys.shape[2]:
            self._grow()
        at, self.written = self.written, self.written + 1
        self.keys[:, :, at] = key_states[:, :, 0]
        self.values[:, :, at] = value_states[:, :, 0]
        return self.keys[:, :, : self.written], self.values[:, :, : self.written]

    def fill(self, tokens: int) -> None:
        """As if every row had written `tokens`; what the buffers then hold is not said."""
        self.written = tokens
        while self.keys.shape[2] <= tokens:
            self._grow()

    def move(self, to: torch.Tensor, origin: torch.Tensor, rows: int) -> None:
        """Rows `origin` take the places `to`; the first `rows` stay."""
        for part in (self.keys, self.values):
            part[to, :, : self.written] = part[origin, :, : self.written]
        self.keys, self.values = self.keys[:rows], self.values[:rows]

    def move_prompts(self, to: torch.Tensor, origin: torch.Tensor, prompts: int) -> None:
        """The same of the prompts."""
        for part in (self.prompt_keys, self.prompt_values):
            part[to] = part[origin]
        self.prompt_keys, self.prompt_values = self.prompt_keys[:prompts], self.prompt_values[:prompts]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the prompt's keys said all there is to know."""

    def get_seq_length(self) -> int:
        """Columns before the next token: the prompt's width and what was written."""
        return self.prompt_keys.shape[2] + self.written

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over all columns."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class ForkedState(LinearAttentionLayer):
    """One layer of linear attention, which keeps no columns but a state: [P, ...] of the prompts, then [R, ...]."""

    BASE = LinearAttentionLayer

    def put(self, start: int, end: int, prefilled: LinearAttentionLayer) -> None:
        """The states of prompts `start` to `end` (without it), which come in order."""
        for mine, theirs in zip(_states(self), _states(prefilled), strict=True):
            for name, part in theirs.items():
                if part is not None:
                    mine[name] = part if start == 0 else torch.cat([mine[name], part])
        for attribute in (
            "conv_kernel_size",
            "has_previous_state",
            "is_conv_states_initialized",
            "is_recurrent_states_initialized",
            "device",
            "dtype",
        ):
            setattr(self, attribute, getattr(prefilled, attribute))

    def fork(self, owner: torch.Tensor, most: int) -> None:
        """A copy of its prompt's state for each row: what a row writes into its own is not its siblings'."""
        self.reorder_cache(owner)

    def move(self, to: torch.Tensor, origin: torch.Tensor, rows: int) -> None:
        """Rows `origin` take the places `to`; the first `rows` stay."""
        for states in _states(self):
            for name, part in states.items():
                if part is not None:
                    part[to] = part[origin]
                    states[name] = part[:rows]

    def move_prompts(self, to: torch.Tensor, origin: torch.Tensor, prompts: int) -> None:
        """Nothing: a prompt's state is in its rows'."""


def _states(layer: LinearAttentionLayer) -> tuple[dict[int, Any], dict[int, Any]]:
    return layer.conv_states, layer.recurrent_states


def forked_layer(prefilled: Any, prompts: int, width: int) -> ForkedLayer | ForkedState:
    """An empty layer of the kind of a prefilled one, for so many prompts of so many columns."""
    if isinstance(prefilled, ForkedState.BASE):
        return ForkedState(number_of_states=prefilled.number_of_states)
    return ForkedLayer(prefilled, prompts, width)


class ForkedCache(Cache):
    """All layers, which prompt each row belongs to, and where its queries stand beside those of its siblings.

    Args:
        layers: one for each decoder layer.
        mask: bool [P, W], False on a prompt's padding.
        owner: int64 [R] on the CPU, the prompt of each row.

    Example: two prompts forked twice: owner [0, 0, 1, 1]. When row 1 ends, row 3 takes its place: [0, 1, 1].
    """

    def __init__(
        self, layers: Sequence[ForkedLayer | ForkedState], mask: torch.Tensor, owner: torch.Tensor
    ) -> None:
        super().__init__(layers=list(layers))
        self.mask = mask
        self.owner = owner
        self._arrange()

    def keep(self, alive: torch.Tensor) -> torch.Tensor:
        """Drop the rows where `alive` (bool [R], on the CPU) is False; returns which row now stands at each place."""
        stay = torch.arange(len(alive))
        to, origin, rows = _moves(alive)
        stay[to] = origin
        stay = stay[:rows]
        self.owner = self.owner[stay]
        device = self.mask.device
        for layer in self.layers:
            layer.move(to.to(device), origin.to(device), rows)
        needed = torch.zeros(len(self.mask), dtype=torch.bool)
        needed[self.owner] = True
        if not needed.all():
            self._keep_prompts(needed)
        self._arrange()
        return stay

    def _keep_prompts(self, needed: torch.Tensor) -> None:
        to, origin, prompts = _moves(needed)
        names = torch.arange(len(needed))
        names[origin] = to
        self.owner = names[self.owner]
        to, origin = to.to(self.mask.device), origin.to(self.mask.device)
        for layer in self.layers:
            layer.move_prompts(to, origin, prompts)
        self.mask[to] = self.mask[origin]
        self.mask = self.mask[:prompts]

    def _arrange(self) -> None:
        """Give each row a slot beside its prompt: prompts x the largest group, holes where a group is smaller."""
        rows, prompts = len(self.owner), len(self.mask)
        sizes = torch.bincount(self.owner, minlength=prompts)
        self.group = int(sizes.max())
        order = self.owner.argsort(stable=True)
        mine = self.owner[order]
        self._slot = torch.empty(rows, dtype=torch.long)
        self._slot[order] = mine * self.group + torch.arange(rows) - (sizes.cumsum(0) - sizes)[mine]
        self._alone = rows == prompts and bool((self.owner == torch.arange(rows)).all())
        self._ways: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        padded = not bool(self.mask.all())
        self._bias = (~self.mask).float().mul(torch.finfo(torch.float32).min) if padded else None

    def _way(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a layer of so many key/value heads: (row, head) to stand at each (prompt, head, slot), and the way back.

        A slot without a row repeats row 0; nobody reads it.
        """
        if heads not in self._ways:
            prompts, head = len(self.mask), torch.arange(heads)
            holder = torch.zeros(prompts * self.group, dtype=torch.long)
            holder[self._slot] = torch.arange(len(self._slot))
            there = holder.view(prompts, 1, self.group) * heads + head.view(1, -1, 1)
            prompt, place = self._slot // self.group, self._slot % self.group
            back = (prompt.view(-1, 1) * heads + head) * self.group + place.view(-1, 1)
            device = self.mask.device
            self._ways[heads] = there.flatten().to(device), back.flatten().to(device)
        return self._ways[heads]

    def beside(self, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """[R x K, n, X] of the rows -> [P x K, group x n, X], each beside its prompt."""
        if self._alone:
            return rows
        there = rows.index_select(0, self._way(heads)[0])
        return there.view(len(self.mask) * heads, -1, rows.shape[-1])

    def back(self, beside: torch.Tensor, heads: int) -> torch.Tensor:
        """The inverse of `beside`: [P x K, group x n, X] -> [R x K, n, X]."""
        if self._alone:
            return beside
        slots = beside.view(len(self.mask) * heads * self.group, -1, beside.shape[-1])
        return slots.index_select(0, self._way(heads)[1])

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Queries [R, H, 1, D] over the prompt's columns and the rows' own [R, K, t, D] -> [R, H, 1, D].

        `window`: a column this far back or farther is out of sight (sliding attention).
        """
        prompt = self.layers[layer]
        rows, heads, _, width = query.shape
        shared = keys.shape[1]
        grouped = (query * scaling).view(rows * shared, heads // shared, width)
        first = torch.bmm(self.beside(grouped, shared), prompt.prompt_keys.flatten(0, 1).transpose(1, 2))
        if self._bias is not None:
            first.view(len(self.mask), -1, first.shape[-1]).add_(self._bias.to(first.dtype).unsqueeze(1))
        before = first.shape[-1]
        own = torch.bmm(grouped, keys.flatten(0, 1).transpose(1, 2))
        weights = torch.cat([self.back(first, shared), own], dim=-1)
        if window is not None and weights.shape[-1] > window:
            weights[..., :-window] = -torch.inf
        weights = weights.softmax(-1, dtype=torch.float32).to(values.dtype)
        seen = torch.bmm(self.beside(weights[..., :before], shared), prompt.prompt_values.flatten(0, 1))
        out = torch.baddbmm(self.back(seen, shared), weights[..., before:], values.flatten(0, 1))
        return out.view(rows, heads, 1, -1)


def _moves(alive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Places that fall free before the last survivor's, who takes each of them, and how many survive."""
    count = int(alive.sum())
    free = (~alive[:count]).nonzero().squeeze(-1)
    return free, alive[count:].nonzero().squeeze(-1) + count, count


def forked_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    forked: ForkedCache,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [R, H, 1, D], own keys and values [R, K, t, D] -> [R, 1, H, D].

    `attention_mask` is not looked at: the cache knows what each row sees.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = forked.attend(module.layer_idx, query, key, value, scaling, sliding_window)
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, forked_attention)
