"""The split attention against one dense mask in float64, its portable kernel too, at every kind of window."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mmreason.model import shared_attention, shared_kernels
from mmreason.model.shared_attention import Layout, Span

LAYOUT = Layout(
    (Span(0, 9, (4, 1, 6)), Span(20, 3, (7, 7)), Span(37, 5, ()), Span(42, 4, (0, 3, 2)), Span(51, 2, (1,)))
)
TOKENS, SCALE = 54, 0.4
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def visible(window: int | None) -> torch.Tensor:
    """Which token sees which, bool [T, T], from what each row would be by itself."""
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for span in LAYOUT.spans:
        body = list(range(span.start, span.start + span.prompt))
        tails = [list(range(begin, begin + n)) for begin, n in zip(span.begins, span.lengths, strict=True)]
        for row in [body + tail for tail in tails] or [body]:
            for place, token in enumerate(row):
                first = 0 if window is None else max(0, place - window + 1)
                seen[token, row[first : place + 1]] = True
    return seen


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ k.transpose(2, 3)) * SCALE
    return scores.masked_fill(~visible(window), -torch.inf).softmax(-1) @ v


def tensors(dtype: torch.dtype) -> tuple[Three, torch.Tensor]:
    q, grad = (torch.randn(1, 4, TOKENS, 16, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(1, 2, TOKENS, 16, dtype=dtype) for _ in range(2))
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), grad


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 7, 12, 40])
def test_values_and_gradients(window: int | None, portable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if portable:
        monkeypatch.setattr(shared_kernels, "_fused_on_cpu", lambda q: False)
        monkeypatch.setattr(shared_kernels, "ROWS", 4)
    inputs, grad = tensors(torch.float64)
    wanted = dense(*inputs, window)
    got = shared_attention._Split.apply(*inputs, LAYOUT, SCALE, window)
    assert torch.allclose(got, wanted, atol=1e-13, rtol=0)
    ours, theirs = (torch.autograd.grad(out, inputs, grad) for out in (got, wanted))
    assert all(torch.allclose(a, b, atol=1e-13, rtol=0) for a, b in zip(ours, theirs, strict=True))


def test_every_token_is_written_once_and_joined_after() -> None:
    """The first block of each token writes; a token without one would keep what was in memory."""
    for window in (None, 1, 3, 8):
        first = torch.zeros(TOKENS, dtype=torch.long)
        for piece in LAYOUT.pieces(window, torch.device("cpu")):
            first[piece.queries.tokens] += int(piece.first)
        assert first.tolist() == [1] * TOKENS


def test_no_mask_grows_with_the_row() -> None:
    """Full attention needs none; a window's are at most as wide as two windows."""
    long = Layout((Span(0, 300, (90, 80)),))
    assert all(piece.block.mask is None for piece in long.pieces(None, torch.device("cpu")))
    masks = [piece.block.mask for piece in long.pieces(16, torch.device("cpu"))]
    assert all(mask is not None and max(mask.shape) < 32 for mask in masks)


def test_spans_stand_behind_each_other() -> None:
    assert all(one.end == other.start for one, other in pairwise(LAYOUT.spans))
    assert Span(10, 4, (2, 3)).begins == (14, 16) and Span(10, 4, (2, 3)).end == 19


def test_the_sum_of_scores_is_exact() -> None:
    (q, k, v), _ = tensors(torch.float64)
    out, lse = shared_kernels.forward(q, k, v, shared_kernels.Block(causal=True), SCALE)
    scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3)) * SCALE
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    assert torch.allclose(lse, scores.masked_fill(later, -torch.inf).logsumexp(-1), atol=1e-13, rtol=0)
    assert out.dtype == torch.float64


@pytest.mark.parametrize("scale", [10.0, 20.0])
def test_large_scores_in_a_window_that_some_suffixes_do_not_reach(scale: float) -> None:
    torch.manual_seed(0)
    layout, window = Layout((Span(0, 6, (9, 2, 3)),)), 3
    q, k, v = (torch.randn(1, heads, 20, 16) for heads in (4, 2, 2))
    inputs = [x.double().requires_grad_() for x in (q * scale, k * scale, v)]
    seen = torch.zeros(20, 20, dtype=torch.bool)
    span = layout.spans[0]
    for begin, length in zip(span.begins, span.lengths, strict=True):
        row = [*range(6), *range(begin, begin + length)]
        for place, token in enumerate(row):
            seen[token, row[max(0, place - window + 1) : place + 1]] = True
    wide_k, wide_v = (x.repeat_interleave(2, 1) for x in inputs[1:])
    scores = (inputs[0] @ wide_k.transpose(2, 3) * 0.25).masked_fill(~seen, -torch.inf)
    wanted = scores.softmax(-1) @ wide_v
    found = shared_attention._Split.apply(*inputs, layout, 0.25, window)
    grad = torch.randn_like(found)
    assert torch.allclose(found, wanted, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, inputs, grad), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-9)
