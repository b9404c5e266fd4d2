"""One block of attention with the sum of its scores, and its gradient where the block is a part of a larger softmax.

The sum (log-sum-exp) lets blocks over different keys be joined exactly: out = sum of exp(lse_i - lse) out_i. The
gradient of each block is then that of flash attention, given the joined `out` and `lse` (as in ring attention,
arXiv 2310.01889), so that nothing of the size queries x keys is kept for the backward pass.

Shapes: N rows, H heads, K key/value heads (H a multiple of K), Lq queries, Lk keys, D width of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

ROWS = 1024  # queries that the portable way scores at a time


class Block(NamedTuple):
    """Which queries of a block see which of its keys: all, those up to their own place, or those of a mask.

    Example: `Block(causal=True)` for a run that attends to itself; `Block(mask=ones(2, 5).bool())` for two queries.
    """

    causal: bool = False
    mask: torch.Tensor | None = None  # bool [Lq, Lk], no row of it empty


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: Block, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q [N, H, Lq, D] over k, v [N, K, Lk, D]: (out [N, H, Lq, D], lse float32 or finer [N, H, Lq])."""
    if _fused_on_cpu(q):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, block.causal, attn_mask=_bias(block, q.dtype), scale=scale
        )
        return out, lse
    if _flash(q, block):
        k, v = _every_head(k, q), _every_head(v, q)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, block.causal, False, scale=scale
        )[:2]
        return out, lse
    outs, sums = [], []
    wide_k, wide_v = _every_head(k, q), _every_head(v, q)
    for start in range(0, q.shape[2], ROWS):
        part = q[:, :, start : start + ROWS]
        scores = _scores(part, wide_k, block, scale, start)
        lse = scores.logsumexp(-1)
        outs.append((scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ wide_v)
        sums.append(lse)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    block: Block,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What one block adds to the gradients of q, k and v, given the *joined* `out` and `lse` of its queries."""
    if _fused_on_cpu(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, block.causal, attn_mask=_bias(block, q.dtype), scale=scale
        )
    wide_k, wide_v = _every_head(k, q), _every_head(v, q)
    if _flash(q, block):
        # torch's own attention has no dropout here: the generator's state that it takes is never read
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, wide_k, wide_v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, block.causal, state,
            state[:1], scale=scale,
        )  # fmt: skip
        return dq, _own_heads(dk, k), _own_heads(dv, v)
    inner = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1, keepdim=True)
    dq_parts = []
    dk, dv = torch.zeros_like(wide_k, dtype=lse.dtype), torch.zeros_like(wide_v, dtype=lse.dtype)
    for start in range(0, q.shape[2], ROWS):
        rows = slice(start, start + ROWS)
        shares = (_scores(q[:, :, rows], wide_k, block, scale, start) - lse[:, :, rows].unsqueeze(-1)).exp()
        dv += shares.to(v.dtype).transpose(2, 3) @ grad[:, :, rows]
        raised = (grad[:, :, rows] @ wide_v.transpose(2, 3)).to(lse.dtype)
        change = (shares * (raised - inner[:, :, rows]) * scale).to(q.dtype)
        dq_parts.append(change @ wide_k)
        dk += change.transpose(2, 3) @ q[:, :, rows]
    return torch.cat(dq_parts, 2), _own_heads(dk, k).to(k.dtype), _own_heads(dv, v).to(v.dtype)


def _fused_on_cpu(q: torch.Tensor) -> bool:
    """Whether torch's kernel for the CPU takes the block: it takes any."""
    return q.device.type == "cpu"


def _bias(block: Block, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as what is added to the scores."""
    if block.mask is None:
        return None
    return torch.zeros(block.mask.shape, dtype=dtype, device=block.mask.device).masked_fill_(
        ~block.mask, -torch.inf
    )


def _scores(q: torch.Tensor, k: torch.Tensor, block: Block, scale: float, start: int) -> torch.Tensor:
    """Scores of some queries, the first of which is number `start` of its block, in float32 or finer."""
    scores = (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if block.mask is not None:
        return scores.masked_fill(~block.mask[start : start + q.shape[2]], -torch.inf)
    if block.causal:
        place = torch.arange(start, start + q.shape[2], device=q.device).unsqueeze(1)
        later = torch.arange(k.shape[2], device=q.device) > place
        return scores.masked_fill_(later, -torch.inf)
    return scores


def _flash(q: torch.Tensor, block: Block) -> bool:
    """Whether CUDA's flash attention takes the block: half precision, no mask, heads of a width that it knows."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.is_cuda and half and block.mask is None and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _every_head(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Keys or values [N, K, L, D] -> [N, H, L, D]."""
    times = q.shape[1] // x.shape[1]
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def _own_heads(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The inverse for gradients: [N, H, L, D] -> [N, K, L, D]."""
    if grad.shape[1] == x.shape[1]:
        return grad
    return grad.view(x.shape[0], x.shape[1], -1, *x.shape[2:]).sum(2)
