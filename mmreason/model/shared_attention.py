"""Attention of packed rows that share prompts: one prompt, then its G suffixes, group after group in one row.

A prompt's tokens attend to themselves; a suffix's tokens to their group's prompt and to their own suffix. That is a
list of blocks joined by the sums of their scores: no mask of the size of the row, no copy of the prompt's keys.
Sliding windows count the distance that the tokens would have in rows of their own.

`attention_of` puts a model's decoder on this attention for as long as it is open. It must stay open over the backward
pass: recomputed activations (gradient checkpointing) attend anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from transformers import AttentionInterface

from mmreason.model import shared_kernels
from mmreason.model.family import bare
from mmreason.model.shared_kernels import Block
from mmreason.model.shared_states import states_of

NAME = "mmreason_shared"
SHORT = (
    24  # runs of so many tokens and less are computed side by side on a CPU: copies then cost less than calls
)
FEW, LIKE = (
    8,
    0.8,
)  # a run stands beside a longer one that has so many tokens more, or of whose this is the share


@dataclass(frozen=True)
class Span:
    """Where one group stands in the packed row: `prompt` tokens from `start` on, then suffixes of `lengths` tokens.

    Example: `Span(10, 4, (2, 3))` is a prompt at 10-13 with suffixes at 14-15 and 16-18.
    """

    start: int
    prompt: int
    lengths: tuple[int, ...]

    @property
    def begins(self) -> tuple[int, ...]:
        """Where each suffix begins in the row."""
        ends = accumulate(self.lengths)
        return tuple(self.start + self.prompt + end - n for end, n in zip(ends, self.lengths, strict=True))

    @property
    def end(self) -> int:
        """Behind the last suffix."""
        return self.start + self.prompt + sum(self.lengths)


class _Run:
    """Tokens that stand behind each other in the row; for the kernels, one row of them."""

    def __init__(self, start: int, end: int) -> None:
        self.tokens = slice(start, end)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[1, H, T, ...] -> [1, H, L, ...]."""
        return x[:, :, self.tokens]

    row = take  # in the row they lie as the kernels take them

    def back(self, part: torch.Tensor) -> torch.Tensor:
        """What a kernel made [N, H, L, ...] -> [1, H, L, ...]: rows that saw the same keys add up."""
        return part if part.shape[0] == 1 else part.sum(0, keepdim=True)

    def write(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """`values` [1, H, L, ...] to these tokens of the row."""
        x[:, :, self.tokens] = values

    def add(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """The same, added."""
        x[:, :, self.tokens] += values

    def real(self, part: torch.Tensor) -> torch.Tensor:
        """Zero where there is padding: there is none."""
        return part


class _Beside:
    """The same columns of several suffixes side by side, padded on the right to [G, C]."""

    def __init__(
        self, begins: Sequence[int], lengths: Sequence[int], first: int, last: int, device: torch.device
    ) -> None:
        """Columns `first` to `last` (exclusive) of the suffixes that begin at `begins`, each of which has some of them;
        a longer one is cut.
        """
        sizes = (torch.tensor(lengths).clamp(max=last) - first).unsqueeze(1)  # [G, 1], 1 or more
        column = torch.arange(min(last, max(lengths)) - first)
        there = column < sizes
        # padding stands for the last of its own suffix's tokens here; nobody reads it
        place = torch.tensor(begins).unsqueeze(1) + first + torch.minimum(column, sizes - 1)
        self.shape = tuple(there.shape)
        self.held = place.flatten().to(device)
        self.filled = there.flatten().nonzero().squeeze(1).to(device)
        self.tokens = self.held[self.filled]
        self.padding = None if bool(there.all()) else (~there).to(device)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[1, H, T, ...] -> [G, H, C, ...]."""
        apart = x[0].index_select(1, self.held)
        return apart.view(x.shape[1], *self.shape, *x.shape[3:]).transpose(0, 1)

    def row(self, x: torch.Tensor) -> torch.Tensor:
        """[1, H, T, ...] -> [1, H, n, ...], these tokens one behind the other."""
        return x.index_select(2, self.tokens)

    def back(self, part: torch.Tensor) -> torch.Tensor:
        """[G, H, C, ...] -> [1, H, n, ...], the padding left out."""
        return part.transpose(0, 1).flatten(1, 2).index_select(1, self.filled).unsqueeze(0)

    def write(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """`values` [1, H, n, ...] to these tokens of the row."""
        x.index_copy_(2, self.tokens, values)

    def add(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """The same, added; no token comes twice."""
        x.index_add_(2, self.tokens, values)

    def real(self, part: torch.Tensor) -> torch.Tensor:
        """[G, H, C, D] with zeros where there is padding."""
        return part if self.padding is None else part.masked_fill(self.padding[:, None, :, None], 0.0)


@dataclass(frozen=True)
class _Piece:
    """One block: some queries, the keys that they see, and which of them; `first` where no block came before."""

    queries: _Run | _Beside
    keys: _Run | _Beside
    block: Block
    first: bool


@dataclass(frozen=True)
class Layout:
    """The groups of a packed row.

    Example: `Layout((Span(0, 4, (2, 3)), Span(9, 5, (1,))))` is a row of 15 tokens.
    """

    spans: tuple[Span, ...]
    _pieces: dict[tuple[int | None, torch.device], list[_Piece]] = field(default_factory=dict)

    def pieces(self, window: int | None, device: torch.device) -> list[_Piece]:
        """The blocks of a layer whose queries see the last `window` tokens (None: all), themselves among them."""
        if (window, device) not in self._pieces:
            found = [
                piece for runs in _alike(self.spans, device) for piece in _own_pieces(runs, window, device)
            ]
            for span in self.spans:
                if any(span.lengths):
                    found += _seen_pieces(span, window, device)
            self._pieces[window, device] = found
        return self._pieces[window, device]


def _banded(queries: range, keys: range, window: int, device: torch.device) -> Block:
    """Of two runs of places, which query sees which key: those before it and itself, within the window."""
    back = torch.arange(queries.start, queries.stop).unsqueeze(1) - torch.arange(keys.start, keys.stop)
    return Block(mask=((back >= 0) & (back < window)).to(device))


def _bands(count: int, window: int | None, device: torch.device) -> Iterator[tuple[range, range, Block]]:
    """`count` tokens that attend to themselves, a window's length of queries at a time."""
    if window is None or count <= window:
        yield range(count), range(count), Block(causal=True)
        return
    for start in range(0, count, window):
        queries = range(start, min(start + window, count))
        keys = range(max(0, start - window + 1), queries.stop)
        yield queries, keys, _banded(queries, keys, window, device)


def _alike(spans: Sequence[Span], device: torch.device) -> list[list[tuple[int, int]]]:
    """All prompts and suffixes as (start, tokens), the longest first; those of like lengths that pay together."""
    most = SHORT if device.type == "cpu" else max(span.end for span in spans)
    runs = [(span.start, span.prompt) for span in spans]
    runs += [run for span in spans for run in zip(span.begins, span.lengths, strict=True) if run[1]]
    alike: list[list[tuple[int, int]]] = []
    longest = 0
    for run in sorted(runs, key=lambda run: -run[1]):
        if not alike or longest > most or run[1] < min(longest - FEW, LIKE * longest):
            alike.append([])
            longest = run[1]
        alike[-1].append(run)
    return alike


def _own_pieces(runs: Sequence[tuple[int, int]], window: int | None, device: torch.device) -> list[_Piece]:
    """The tokens of each run (start, tokens) among themselves, all runs at once."""
    pieces = []
    for queries, keys, block in _bands(max(tokens for _, tokens in runs), window, device):
        some = _reaching(runs, queries.start)
        mine, theirs = (_columns(some, columns, device) for columns in (queries, keys))
        pieces.append(_Piece(mine, theirs, block, first=True))
    return pieces


def _reaching(runs: Iterable[tuple[int, int]], column: int) -> list[tuple[int, int]]:
    """Those of the runs (start, tokens) that have a token in `column`.

    The others stay out: their padding would be scored against sums of other keys, and its weights could overflow.
    """
    return [run for run in runs if run[1] > column]


def _columns(runs: Sequence[tuple[int, int]], columns: range, device: torch.device) -> _Run | _Beside:
    """Those columns of each run; no run has tokens behind the last of them where it is alone."""
    begins, lengths = zip(*runs, strict=True)
    if len(runs) == 1:
        return _Run(begins[0] + columns.start, begins[0] + columns.stop)
    return _Beside(begins, lengths, columns.start, columns.stop, device)


def _seen_pieces(span: Span, window: int | None, device: torch.device) -> list[_Piece]:
    """The suffixes' tokens onto the prompt: all of them at once where no window hides a part of it."""
    body = _Run(span.start, span.start + span.prompt)
    if window is None or span.prompt + max(span.lengths) <= window:
        return [_Piece(_Run(span.start + span.prompt, span.end), body, Block(), first=False)]
    reach = min(window - 1, max(span.lengths))  # a suffix's columns that see the prompt's last token at least
    if reach == 0:
        return []
    keys = range(max(0, span.prompt - window + 1), span.prompt)
    queries = range(span.prompt, span.prompt + reach)
    begins, lengths = zip(*_reaching(zip(span.begins, span.lengths, strict=True), 0), strict=True)
    return [
        _Piece(
            _Beside(begins, lengths, 0, reach, device),
            _Run(span.start + keys.start, span.start + keys.stop),
            _banded(queries, keys, window, device),
            first=False,
        )
    ]


class _Split(torch.autograd.Function):
    """One layer's attention. Kept for the backward pass: q, k, v, the output, the sums of the scores; no scores."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: Layout,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """q [1, H, T, D], k and v [1, K, T, D] -> [1, H, T, D]."""
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for piece in layout.pieces(window, q.device):
            queries = piece.queries
            mine = queries.take(q)
            keys, values = (_as_many(piece.keys.take(x), mine) for x in (k, v))
            part, sums = shared_kernels.forward(mine, keys, values, piece.block, scale)
            part, sums = queries.back(part), queries.back(sums)
            if not piece.first:
                before, before_sums = queries.row(out), queries.row(lse)
                both = torch.logaddexp(sums, before_sums)
                part = part * (sums - both).exp().unsqueeze(-1) + before * (
                    before_sums - both
                ).exp().unsqueeze(-1)
                sums = both
            queries.write(out, part.to(out.dtype))
            queries.write(lse, sums)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale, ctx.window = layout, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, out, lse = ctx.saved_tensors
        made = [torch.zeros_like(x) for x in (q, k, v)]
        for piece in ctx.layout.pieces(ctx.window, q.device):
            queries, keys = piece.queries, piece.keys
            mine = queries.take(q)
            parts = shared_kernels.backward(
                queries.real(queries.take(grads[0])),
                mine,
                _as_many(keys.take(k), mine),
                _as_many(keys.take(v), mine),
                queries.take(out),
                queries.take(lse),
                piece.block,
                ctx.scale,
            )
            for whole, part, where in zip(made, parts, (queries, keys, keys), strict=True):
                where.add(whole, where.back(part))
        return *made, None, None, None


def _as_many(keys: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Keys [1, K, L, D] seen by each of N rows of queries."""
    return keys if keys.shape[0] == queries.shape[0] else keys.expand(queries.shape[0], -1, -1, -1)


_open: list[
    Layout
] = []  # the layouts in force; seen by every thread, as a GPU's backward pass runs in its own


@contextmanager
def attention_of(model: Any, layout: Layout) -> Iterator[None]:
    """The decoder of `model` attends by `layout`; its encoders as before. Keep it open over the backward pass."""
    decoder = bare(model).get_decoder()
    config = decoder.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    _open.append(layout)
    try:
        with states_of(decoder, layout):
            yield
    finally:
        _open.pop()
        config._attn_implementation = before


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    `attention_mask` is not looked at: the open layout knows what each token sees.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as torch's own attention does
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    out = _Split.apply(query, key, value, _open[-1], scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, shared_attention)
