"""Mistakes that a shared forward invites: each must show in the very comparison that holds the real one to account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmreason.model import shared_attention
from mmreason.model.load import Loaded, load_model
from mmreason.model.shared_attention import Layout, Span
from mmreason.model.shared_rows import Packed
from mmreason.types import Rendered
from tests.model.groups import apart, moved, plain, rows_of, shared
from tests.model.test_shared_forward import GRADIENTS, SLIDING, VALUES
from tests.rollout.mixes import model_of, prompts_of
from tests.tiny import TEXTS, tiny_model_config

Change = Callable[[Packed], Packed]


@pytest.fixture(params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def seen(
    request: pytest.FixtureRequest, native_folder: Callable[[str], Path]
) -> tuple[Loaded, list[list[Rendered]]]:
    """A model with three axes of positions, and two groups that look at pictures."""
    loaded = model_of(request.param, native_folder)
    loaded.model.train()
    return loaded, [rows_of(loaded, p, [5, 7, 6], i) for i, p in enumerate(prompts_of(loaded, ("i", "ii")))]


def span_of(packed: Packed, place: int) -> Span:
    return next(span for span in packed.layout.spans if span.start <= place < span.end)


def on_suffixes(packed: Packed, move: Callable[[Span, int, int], torch.Tensor | int]) -> Packed:
    """Positions of suffix tokens moved by `move(span, suffix, column)`."""
    positions = packed.positions.clone()
    for span in packed.layout.spans:
        for number, (begin, length) in enumerate(zip(span.begins, span.lengths, strict=True)):
            for column in range(length):
                positions[:, begin + column] += move(span, number, column)
    return moved(packed, positions)


def one_too_far(packed: Packed) -> Packed:
    return on_suffixes(packed, lambda span, number, column: 1)


def delta_forgotten(packed: Packed) -> Packed:
    """Suffixes go on at the number of the prompt's tokens, as if no picture had saved places."""

    def move(span: Span, number: int, column: int) -> torch.Tensor:
        return span.prompt - packed.positions[:, span.begins[0]]

    return on_suffixes(packed, move)


def running(packed: Packed) -> Packed:
    """Each suffix goes on where the one before it ended."""
    return on_suffixes(packed, lambda span, number, column: sum(span.lengths[:number]))


def one_axis(packed: Packed) -> Packed:
    """The prompt counted token by token, the suffixes behind it."""
    positions = packed.positions.clone()
    for span in packed.layout.spans:
        positions[:, span.start : span.start + span.prompt] = torch.arange(span.prompt)
    return delta_forgotten(moved(packed, positions))


def leak(packed: Packed) -> Packed:
    """All suffixes of a group taken for one: later ones see those before."""
    spans = tuple(replace(span, lengths=(sum(span.lengths),)) for span in packed.layout.spans)
    return replace(packed, layout=Layout(spans))


def first_from_before_the_last(packed: Packed) -> Packed:
    """The first written token predicted by the last prompt token but one."""
    places = []
    for place in packed.places:
        span = span_of(packed, int(place[0]))
        places.append(
            torch.cat(
                [place[: span.prompt - 1], place[span.prompt - 2 : span.prompt - 1], place[span.prompt :]]
            )
        )
    return replace(packed, places=tuple(places))


def pictures_exchanged(packed: Packed) -> Packed:
    """The groups' media in another order than their prompts."""
    grids = packed.media["image_grid_thw"]
    parts = packed.media["pixel_values"].split(grids.prod(1).tolist())
    return replace(packed, media={**packed.media, "pixel_values": torch.cat(parts[::-1])})


@pytest.mark.parametrize(
    "mutant",
    [one_too_far, delta_forgotten, running, one_axis, leak, first_from_before_the_last, pictures_exchanged],
)
def test_a_wrongly_packed_row_shows(mutant: Change, seen: tuple[Loaded, list[list[Rendered]]]) -> None:
    loaded, groups = seen
    wanted = plain(loaded, groups)
    values, gradient, _ = apart(wanted, shared(loaded, groups, mutant))
    assert values > 100 * VALUES and gradient > 100 * GRADIENTS
    values, gradient, _ = apart(wanted, shared(loaded, groups))
    assert values <= VALUES and gradient <= GRADIENTS


def test_predicting_a_token_from_itself_shows(seen: tuple[Loaded, list[list[Rendered]]]) -> None:
    loaded, groups = seen
    values, gradient, _ = apart(plain(loaded, groups), shared(loaded, groups, earlier=0))
    assert values > 100 * VALUES and gradient > 100 * GRADIENTS


def test_a_hidden_last_prompt_token_shows(
    seen: tuple[Loaded, list[list[Rendered]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, groups = seen
    wanted = plain(loaded, groups)
    real = shared_attention._seen_pieces

    def short(span: Span, window: int | None, device: torch.device) -> list[shared_attention._Piece]:
        keys = shared_attention._Run(span.start, span.start + span.prompt - 1)
        return [replace(piece, keys=keys) for piece in real(span, window, device)]

    monkeypatch.setattr(shared_attention, "_seen_pieces", short)
    values, gradient, _ = apart(wanted, shared(loaded, groups))
    assert values > 100 * VALUES and gradient > 100 * GRADIENTS


def test_a_detached_prompt_shows_in_gradients_only(
    seen: tuple[Loaded, list[list[Rendered]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a check of log-probabilities alone would let pass."""
    loaded, groups = seen
    wanted = plain(loaded, groups)
    real = shared_attention._seen_pieces

    class Detached(shared_attention._Run):
        def add(self, x: torch.Tensor, values: torch.Tensor) -> None:
            pass

    def cut(span: Span, window: int | None, device: torch.device) -> list[shared_attention._Piece]:
        keys = Detached(span.start, span.start + span.prompt)
        return [replace(piece, keys=keys) for piece in real(span, window, device)]

    monkeypatch.setattr(shared_attention, "_seen_pieces", cut)
    values, gradient, _ = apart(wanted, shared(loaded, groups))
    assert values <= VALUES and gradient > 100 * GRADIENTS


@pytest.mark.parametrize("llm", SLIDING)
def test_a_window_over_packed_distance_shows(llm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later suffix stands far from the prompt in the packed row, but right behind it in a row of its own."""
    config = {**SLIDING[llm], "model_type": llm, "sliding_window": 8, "initializer_range": 0.2}
    loaded = load_model(tiny_model_config(llm=config), texts=lambda: TEXTS, seed=0)
    groups = [rows_of(loaded, p, [5, 7, 6], i) for i, p in enumerate(prompts_of(loaded, ("i", "ii")))]
    wanted = plain(loaded, groups)
    real = shared_attention._seen_pieces

    def far(span: Span, window: int | None, device: torch.device) -> list[shared_attention._Piece]:
        first = replace(span, lengths=span.lengths[:1])  # only the first suffix is near enough
        return real(first if window else span, window, device)

    monkeypatch.setattr(shared_attention, "_seen_pieces", far)
    assert apart(wanted, shared(loaded, groups))[0] > 100 * VALUES
    monkeypatch.setattr(
        shared_attention, "_seen_pieces", lambda span, window, device: real(span, None, device)
    )
    assert apart(wanted, shared(loaded, groups))[0] > 100 * VALUES  # no window at all
