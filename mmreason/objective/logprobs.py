"""Log-probabilities and entropy of given tokens under the distribution that sampling used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**25  # logits that are in memory at a time: 128 MiB of float32

Head = Callable[[torch.Tensor], torch.Tensor]  # hidden states [..., H] -> logits [..., V]


def token_logprobs(
    logits: torch.Tensor,
    ids: torch.Tensor,
    banned_ids: Sequence[int] = (),
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs, entropy), each float32 with the shape of `ids` [...]; `logits` is [..., V] and predicts `ids`.

    `banned_ids` (media placeholders, which sampling never draws) leave the distribution; `temperature`
    divides the logits as it did in sampling. A banned id among `ids` (a prompt's own placeholder) still
    gets a finite number, so that a zero weight silences it. Entropy is in nats and carries no gradient.

    With `chunk`, that many positions at a time are widened to float32, and recomputed in the backward pass.
    """
    vocabulary = logits.shape[-1]
    banned = torch.zeros(vocabulary, dtype=torch.bool, device=logits.device)
    banned[torch.tensor(list(banned_ids), dtype=torch.long, device=logits.device)] = True
    flat, targets = logits.reshape(-1, vocabulary), ids.reshape(-1)
    if chunk is None or flat.shape[0] <= chunk:
        logprobs, entropy = _logprobs(flat, targets, banned, temperature)
    else:
        keep = torch.is_grad_enabled() and logits.requires_grad
        parts = []
        for rows, wanted in zip(flat.split(chunk), targets.split(chunk), strict=True):
            if keep:
                parts.append(checkpoint(_logprobs, rows, wanted, banned, temperature, use_reentrant=False))
            else:
                parts.append(_logprobs(rows, wanted, banned, temperature))
        logprobs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs.view(ids.shape), entropy.view(ids.shape)


def hidden_logprobs(
    head: Head,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    vocabulary: int,
    banned_ids: Sequence[int] = (),
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_logprobs` of `head(hidden)`, [N] each, for hidden [N, H] and ids [N], without logits of all N at once.

    `chunk` tokens are scored at a time (default: CHUNK_ELEMENTS logits); with several chunks their logits are made
    again in the backward pass.
    """
    size = chunk or max(1, CHUNK_ELEMENTS // vocabulary)

    def score(some: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(head(some), wanted, banned_ids, temperature)

    if hidden.shape[0] <= size:
        return score(hidden, ids)
    parts = [
        checkpoint(score, some, wanted, use_reentrant=False)
        if torch.is_grad_enabled()
        else score(some, wanted)
        for some, wanted in zip(hidden.split(size), ids.split(size), strict=True)
    ]
    logprobs, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, entropy


def _logprobs(
    logits: torch.Tensor, ids: torch.Tensor, banned: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for flat [N, V] and [N]."""
    scaled = logits.float() / temperature
    open_ = scaled.masked_fill(banned, torch.finfo(torch.float32).min)
    normaliser = torch.logsumexp(open_, dim=-1)
    chosen = scaled.gather(-1, ids[:, None]).squeeze(-1)
    with torch.no_grad():
        log_p = open_ - normaliser[:, None]
        entropy = -(log_p.exp() * log_p.masked_fill(banned, 0.0)).sum(-1)
    return chosen - normaliser, entropy
