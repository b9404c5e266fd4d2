"""Linear attention over packed rows that share prompts: a prompt's state once, and each suffix from there.

A layer of linear attention keeps a state that runs on from token to token, so that it must not run over a packed row
as it stands. The layer's own module is called on each prompt, and once more on suffixes side by side, which begin with
their prompt's state; what a suffix makes of it stays its own. States are never changed in place: gradients of all
suffixes flow into their prompt. Everything happens inside the layer, so recomputing it (gradient checkpointing) is as
good as computing it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from mmreason.model.shared_attention import Layout

LINEAR = "linear_attention"
FEW, LIKE = (
    16,
    0.8,
)  # a run stands beside a longer one that has so many tokens more, or of whose this is the share
Run = tuple[int, int, int]  # where it begins in the row, its tokens (1 or more), the number of its prompt


class State:
    """What a layer has kept of the tokens so far, in the place of transformers' cache: nothing is changed in place.

    Example: after a prompt, `state.of_rows(torch.tensor([0, 0, 1]))` is that of three suffixes, two of the first.
    """

    def __init__(self) -> None:
        self.conv: dict[int, torch.Tensor] = {}  # number of the state -> [N, channels, columns]
        self.recurrent: dict[int, torch.Tensor] = {}  # number of the state -> [N, ...]

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The last columns before the convolution; None before the first token."""
        return self.conv.get(state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The state behind the last token; None before the first."""
        return self.recurrent.get(state_idx)

    def is_recording_past(self, layer_idx: int) -> bool:
        """Yes: a layer must not write a single token into the state that it is given."""
        return True

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int = 1
    ) -> torch.Tensor:
        """Take in new columns; returns those that the convolution of the new ones sees."""
        before = self.conv.get(state_idx)
        full = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        self.conv[state_idx] = full[..., -conv_kernel_size:]
        return full

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0
    ) -> torch.Tensor:
        """Take in the state behind the newest token."""
        self.recurrent[state_idx] = recurrent_states
        return recurrent_states

    def of_rows(self, prompts: torch.Tensor) -> State:
        """Each row's, by the number of its prompt, int64 [R]."""
        made = State()
        made.conv = {n: x.index_select(0, prompts) for n, x in self.conv.items()}
        made.recurrent = {n: x.index_select(0, prompts) for n, x in self.recurrent.items()}
        return made


def joined(states: Sequence[State]) -> State:
    """States of one prompt each -> of all; shorter columns (of prompts shorter than the kernel) begin with zeros."""
    made = State()
    for number in states[0].conv:
        parts = [state.conv[number] for state in states]
        width = max(part.shape[-1] for part in parts)
        made.conv[number] = torch.cat(
            [nn.functional.pad(part, (width - part.shape[-1], 0)) for part in parts]
        )
    for number in states[0].recurrent:
        made.recurrent[number] = torch.cat([state.recurrent[number] for state in states])
    return made


def linear_layers(decoder: Any) -> list[nn.Module | None]:
    """The module of each layer of linear attention; None for one that takes no state from outside."""
    kinds = getattr(decoder.config, "layer_types", None) or ()
    if LINEAR not in kinds:
        return []
    chosen = (layer for layer, kind in zip(decoder.layers, kinds, strict=False) if kind == LINEAR)
    return [next((m for m in layer.children() if _takes_state(m)), None) for layer in chosen]


def _takes_state(module: nn.Module) -> bool:
    """Whether it is a mixer of tokens that goes on from a convolution's columns and a state."""
    return "cache_params" in inspect.signature(module.forward).parameters and hasattr(
        module, "conv_kernel_size"
    )


@contextmanager
def states_of(decoder: Any, layout: Layout) -> Iterator[None]:
    """The decoder's layers of linear attention run by `layout` as long as this is open."""
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for module in linear_layers(decoder):
            if module is not None:
                changed.append((module, module.__dict__.get("forward")))
                module.forward = _by_layout(getattr(module.forward, "original", module.forward), layout)
        yield
    finally:
        for module, before in changed:
            if before is None:
                del module.forward
            else:
                module.forward = before


def _by_layout(original: Callable[..., torch.Tensor], layout: Layout) -> Callable[..., torch.Tensor]:
    """The layer's forward, packed row [1, T, hidden] -> [1, T, hidden]; a mask or a cache from outside has no say."""
    alone = [(s.start, s.prompt, 0) for s in layout.spans if not any(s.lengths)]
    groups = [span for span in layout.spans if any(span.lengths)]
    suffixes = [
        (begin, length, number)
        for number, span in enumerate(groups)
        for begin, length in zip(span.begins, span.lengths, strict=True)
        if length
    ]

    def forward(
        hidden_states: torch.Tensor, cache_params: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        places: list[torch.Tensor] = []
        made: list[torch.Tensor] = []

        def run(runs: Sequence[Run], state: State | None) -> None:
            held, real = _side_by_side(runs, hidden_states.device)
            rows = hidden_states[0][held]
            out = original(hidden_states=rows, cache_params=state, attention_mask=None, **kwargs)
            places.append(held[real])
            made.append(out[real])

        for runs in _alike(alone):
            run(runs, None)
        states = []
        for span in groups:
            states.append(State())
            run([(span.start, span.prompt, 0)], states[-1])
        behind = joined(states) if states else None
        for runs in _alike(suffixes):
            assert behind is not None
            owners = torch.tensor([number for _, _, number in runs], device=hidden_states.device)
            run(runs, behind.of_rows(owners))
        order = torch.cat(places).argsort()
        return torch.cat(made).index_select(0, order).unsqueeze(0)

    forward.original = original  # type: ignore[attr-defined]
    return forward


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of like lengths together, the longest first."""
    alike: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: -run[1]):
        longest = alike[-1][0][1] if alike else 0
        if not alike or run[1] < min(longest - FEW, LIKE * longest):
            alike.append([])
        alike[-1].append(run)
    return alike


def _side_by_side(runs: Sequence[Run], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [N, C] in the row of runs padded on the right by their last token, and which are no padding, bool [N, C].

    Two columns at least: layers take a single token for a step of decoding.
    """
    begins, lengths, _ = (
        torch.tensor(column, device=device).unsqueeze(1) for column in zip(*runs, strict=True)
    )
    column = torch.arange(max(2, max(length for _, length, _ in runs)), device=device)
    return begins + torch.minimum(column, lengths - 1), column < lengths
