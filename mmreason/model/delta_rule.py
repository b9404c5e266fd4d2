"""The gated delta rule of linear attention as training runs it: a chunk's decays are summed up in float64.

transformers' own rule, where no kernel of flash-linear-attention stands in for it, sums up the logarithms of decay in
float32. The gradient of a decay is then a small difference of large sums: against float64, gradients of `A_log` and
`dt_bias` of tiny hybrids were wrong by up to 0.2% of their norm, and differed by as much between rows that share their
prompt and rows that do not. With these sums in float64 the two ways agree to 6e-5. Log-probabilities stay as they are,
to 1e-5.

Shapes: N rows, T tokens, H heads (of keys and queries H or fewer), widths K and V, chunks of C tokens.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mmreason.model.family import bare

REFERENCE = "torch_chunk_gated_delta_rule"  # what the files of transformers' models call theirs
EPS = 1e-6  # of a norm


@contextmanager
def exact_decays(model: Any) -> Iterator[None]:
    """Layers of linear attention run by `delta_rule` as long as this is open, where theirs would be the reference.

    Keep it open over the backward pass: recomputed activations (gradient checkpointing) run it anew.
    """
    rooms = [] if _has_kernels() else _rooms(bare(model))
    before = [getattr(room, REFERENCE) for room in rooms]
    for room in rooms:
        setattr(room, REFERENCE, delta_rule)
    try:
        yield
    finally:
        for room, rule in zip(rooms, before, strict=True):
            setattr(room, REFERENCE, rule)


@cache
def _has_kernels() -> bool:
    """Whether flash-linear-attention can be imported; where it fails to, transformers runs its own rule."""
    try:
        importlib.import_module("fla")
    except (ImportError, AttributeError, RuntimeError, OSError):  # it does not fit the machine
        return False
    return True


def _rooms(model: nn.Module) -> list[Any]:
    """The Python modules that hold the model's code and a rule."""
    names = sorted({type(module).__module__ for module in model.modules()})
    return [room for name in names if hasattr(room := sys.modules.get(name), REFERENCE)]


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' rule by its own arguments: what each token reads [N, T, H, V], and the state [N, H, K, V] behind.

    S_t = exp(g_t) S_(t-1) (1 - beta_t k_t k_t') + beta_t v_t k_t' (arXiv 2412.06464), a chunk at a time.

    Args:
        query, key: [N, T, heads, K]; `value` [N, T, H, V]; `g` and `beta` [N, T, H], g the logarithms of decay.
        initial_state: [N, H, K, V]; None: nothing.
    """
    assert kwargs.get("cu_seqlens") is None, "rows of their own only"
    dtype, tokens = query.dtype, query.shape[1]
    size = min(chunk_size, tokens)
    times = value.shape[2] // key.shape[2]
    query, key, value, beta = (_chunks(x.to(torch.float32), size) for x in (query, key, value, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (x * ((x * x).sum(-1, keepdim=True) + EPS).rsqrt() for x in (query, key))
    query, key = (x.repeat_interleave(times, dim=1) for x in (query * query.shape[-1] ** -0.5, key))
    pairs, since, until, whole = _decays(_chunks(g.double(), size), query.dtype)
    strong = key * beta.unsqueeze(-1)
    system = (strong @ key.mT) * pairs
    seen = (query @ key.mT) * pairs
    new, old = (
        torch.linalg.solve_triangular(system, x, upper=False, unitriangular=True)
        for x in (value * beta.unsqueeze(-1), strong * since)
    )
    query, key = query * since, key * until
    state = new.new_zeros(*new.shape[:2], key.shape[-1], new.shape[-1])
    state = state if initial_state is None else initial_state.to(new)
    read = []
    for i in range(new.shape[2]):
        change = new[:, :, i] - old[:, :, i] @ state
        read.append(query[:, :, i] @ state + seen[:, :, i] @ change)
        state = state * whole[:, :, i] + key[:, :, i].mT @ change
    out = torch.cat(read, dim=2)[:, :, :tokens].transpose(1, 2).to(dtype)
    return out, state if output_final_state else None


def _chunks(x: torch.Tensor, size: int) -> torch.Tensor:
    """[N, T, H, ...] -> [N, H, chunks, C, ...], the last one filled up with zeros."""
    x = x.transpose(1, 2)
    filling = (0, 0) * (x.ndim - 3) + (0, -x.shape[2] % size)
    return functional.pad(x, filling).unflatten(2, (-1, size))


def _decays(g: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What is left at each token of a chunk of what came at each before [..., C, C], and of what came before the chunk
    [..., C, 1]; at the chunk's end of each token [..., C, 1], and of what came before [..., 1, 1].

    `g` [..., C] is float64, and so are its sums, whose differences would lose their digits.
    """
    sums = g.cumsum(-1)
    later = torch.ones(g.shape[-1], g.shape[-1], dtype=torch.bool, device=g.device).triu(1)
    pairs = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf)
    end = sums[..., -1:]
    parts = (pairs, sums.unsqueeze(-1), (end - sums).unsqueeze(-1), end.unsqueeze(-1))
    return tuple(x.exp().to(dtype) for x in parts)
