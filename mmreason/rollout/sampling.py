"""How the next token is drawn: filters on one step's logits, and a draw that depends on its own row and step only.

The draw is counter-based: a hash of (the row's seed, the step) makes the one uniform number that picks the token. So a
row's completion does not depend on which other rows share its batch, nor on when they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. `greedy` ignores temperature, top_p, top_k and min_p.

    Example: `SamplingParams(max_new_tokens=64, temperature=1.0)`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    greedy: bool = False
    max_rows: int = 256  # rows decoded at once


def row_seeds(count: int) -> torch.Tensor:
    """`count` fresh seeds, int64 [count], of torch's global generator: its seed or restored state decides the draws."""
    return torch.randint(0, 2**63 - 1, (count,), dtype=torch.int64)


def uniforms(seeds: torch.Tensor, step: int) -> torch.Tensor:
    """For each of `seeds` (int64 [R]) its number of this step, float64 [R] in [0, 1).

    SplitMix64 (Steele, Lea and Flood 2014) of seed + (step + 1) x the golden gamma; int64 wraps around as it should.
    """
    z = seeds + _signed((step + 1) * 0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 11).double() * 2.0**-53


def _signed(value: int) -> int:
    """The int64 whose bits are those of `value` modulo 2^64."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right: torch's own drags the sign along."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def scores(logits: torch.Tensor, banned: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Logits [R, V] -> float32 log-probabilities [R, V] of the policy: banned ids (int64 [N]) out, then temperature.

    They are what training scores; top-k, top-p and min-p narrow the draw only.
    """
    logits = logits.float().index_fill(-1, banned, -torch.inf)
    if not params.greedy and params.temperature != 1.0:
        logits = logits / params.temperature
    return logits.log_softmax(-1)


def draw(logprobs: torch.Tensor, seeds: torch.Tensor, step: int, params: SamplingParams) -> torch.Tensor:
    """The next token of each row, int64 [R], of the policy's log-probabilities [R, V] and the rows' seeds."""
    if params.greedy:
        return logprobs.argmax(-1)
    weights = narrowed(logprobs, params).exp()
    ladder = weights.cumsum(-1, dtype=torch.float64)
    aim = uniforms(seeds, step).unsqueeze(-1) * ladder[:, -1:]
    picked = torch.searchsorted(ladder, aim, right=True).clamp_(max=weights.shape[-1] - 1)
    # a sum that is added up in parallel may rise by its rounding over a token of weight 0, which is never meant
    possible = weights.gather(-1, picked) > 0
    return torch.where(possible, picked, weights.argmax(-1, keepdim=True)).squeeze(-1)


def narrowed(logprobs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Log-probabilities [R, V] with -inf where top-k, then top-p, then min-p cut off, as transformers' warpers do."""
    if 0 < params.top_k < logprobs.shape[-1]:
        least = logprobs.topk(params.top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if params.top_p < 1.0:
        ordered, places = logprobs.sort(dim=-1)
        out = ordered.softmax(-1).cumsum(-1) <= 1.0 - params.top_p
        out[:, -1] = False
        logprobs = logprobs.masked_fill(out.scatter(-1, places, out), -torch.inf)
    if params.min_p > 0.0:
        out = logprobs < logprobs.amax(-1, keepdim=True) + torch.tensor(params.min_p).log()
        logprobs = logprobs.masked_fill(out, -torch.inf)
    return logprobs


def as_ids(ids: Sequence[int], device: torch.device) -> torch.Tensor:
    """Token ids as int64 [N] on `device`."""
    return torch.tensor(sorted(ids), dtype=torch.long, device=device)
