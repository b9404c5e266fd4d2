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
    stop: tuple[str, ...] = ()  # text that ends a completion; it stays in it
    max_rows: int = 256  # rows decoded at once
    kv_bytes: int | None = None  # of keys and values at once; None: as many as max_rows need
    drop_finished: bool = True  # False: rows that ended are decoded on until the last one ends, to measure by


def row_seeds(count: int) -> torch.Tensor:
    """`count` fresh seeds, int64 [count], of torch's global generator: its seed or restored state decides the draws."""
    return torch.randint(0, 2**63 - 1, (count,), dtype=torch.int64)


def fresh_seeds(prompts: int, count: int, params: SamplingParams) -> torch.Tensor:
    """Seeds int64 [prompts, count] for `count` rows of each prompt; zeros, and nothing drawn, where none is needed."""
    if params.greedy:
        return torch.zeros(prompts, count, dtype=torch.int64)
    return row_seeds(prompts * count).view(prompts, count)


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


def draw(
    logits: torch.Tensor, banned: torch.Tensor, seeds: torch.Tensor, step: int, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row and its log-probability, int64 [R] and float32 [R], of a step's logits [R, V].

    The policy is the logits without the `banned` ids (int64 [N]), over the temperature; that is what training scores.
    top-k, top-p and min-p narrow the draw only.
    """
    logits = logits.float().index_fill(-1, banned, -torch.inf)
    if not params.greedy and params.temperature != 1.0:
        logits /= params.temperature
    if params.greedy:
        tokens = logits.argmax(-1, keepdim=True)
        return tokens.squeeze(-1), (logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)).squeeze(
            -1
        )
    best = logits.amax(-1, keepdim=True)
    weights = (logits - best).exp_()
    total = weights.sum(-1, keepdim=True)
    tokens = _pick(weights if _free(params) else narrowed(weights / total, params), seeds, step)
    return tokens.squeeze(-1), (logits.gather(-1, tokens) - best - total.log()).squeeze(-1)


def _free(params: SamplingParams) -> bool:
    return params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0


def _pick(weights: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
    """One column of each row, int64 [R, 1], as likely as its weight."""
    ladder = weights.cumsum(-1, dtype=torch.float64)
    aim = uniforms(seeds, step).unsqueeze(-1) * ladder[:, -1:]
    picked = torch.searchsorted(ladder, aim, right=True).clamp_(max=weights.shape[-1] - 1)
    # A sum that is added up in parallel may rise by its rounding over a column of weight 0, which is never meant.
    possible = weights.gather(-1, picked) > 0
    if picked.device.type == "cpu" and possible.all():
        return picked
    return torch.where(possible, picked, weights.argmax(-1, keepdim=True))


def narrowed(weights: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Probabilities [R, V] with 0 where top-k, then top-p, then min-p cut off, as transformers' warpers do."""
    if 0 < params.top_k < weights.shape[-1]:
        least = weights.topk(params.top_k, dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < least, 0.0)
    if params.top_p < 1.0:
        ordered, places = weights.sort(dim=-1)
        out = ordered.cumsum(-1) <= (1.0 - params.top_p) * ordered.sum(-1, keepdim=True)
        out[:, -1] = False
        weights = weights.masked_fill(out.scatter(-1, places, out), 0.0)
    if params.min_p > 0.0:
        weights = weights.masked_fill(weights < params.min_p * weights.amax(-1, keepdim=True), 0.0)
    return weights


def as_ids(ids: Sequence[int], device: torch.device) -> torch.Tensor:
    """Token ids as int64 [N] on `device`."""
    return torch.tensor(sorted(ids), dtype=torch.long, device=device)
