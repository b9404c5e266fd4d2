"""Log-probabilities, entropy and a method's token weights of one micro-batch, row by row or with a shared prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmreason.model.delta_rule import exact_decays
from mmreason.model.family import forward_inputs
from mmreason.model.shared_attention import attention_of
from mmreason.model.shared_fit import unscorable
from mmreason.model.shared_forward import before_head, head_of, hidden_states
from mmreason.model.shared_rows import Packed
from mmreason.objective import CHUNK_ELEMENTS, Correction, GroupWeights, Head, hidden_logprobs, token_logprobs
from mmreason.types import MicroBatch

if TYPE_CHECKING:
    from mmreason.train.step import Trainer


@dataclass(frozen=True)
class Objective:
    """What a method declares to the step: how log-probabilities are taken and what it needs from the group.

    Example: `Objective(banned=(7, 8), temperature=1.0, epsilon=0.2, epsilon_high=0.28)`.
    """

    banned: tuple[int, ...] = ()  # ids removed from the distribution, as in sampling
    temperature: float = 1.0
    epsilon: float = 0.2
    epsilon_high: float = 0.2
    token_weights: GroupWeights | None = None
    correction: Correction | None = None  # of what another engine sampled


@dataclass(frozen=True)
class Scores:
    """Of each row's tokens from column `first` on: column j speaks of `ids[:, first + j]`; K columns.

    What no row learns is 0 (where logits are the model's own, it is scored as well).
    """

    logprobs: torch.Tensor  # [B, K]
    entropy: torch.Tensor  # [B, K]
    weights: torch.Tensor | None  # [B, K], without gradient; None where the method has none
    first: int


@dataclass(frozen=True)
class Micro:
    """One micro-batch: the rows' streams, and how they go through the model.

    Example: `Micro(collate(rows, 0), None)` is the plain way; its batch then holds the media too.
    """

    batch: MicroBatch
    packed: Packed | None

    @property
    def forward_tokens(self) -> int:
        """Tokens that the LLM computes, padding included."""
        return self.batch.ids.numel() if self.packed is None else self.packed.ids.numel()

    @contextmanager
    def attention(self, model: Any) -> Iterator[None]:
        """What must stay open from the forward to the end of the backward pass."""
        shared = nullcontext() if self.packed is None else attention_of(model, self.packed.layout)
        with exact_decays(model), shared:
            yield


def scores(model: Any, trainer: Trainer, micro: Micro, objective: Objective) -> Scores:
    """Score the tokens that the rows learn; `model` is the one to call. `micro.attention` must be open."""
    with _precision(trainer):
        if micro.packed is None:
            return _plain(model, trainer, micro.batch, objective)
        return _shared(model, trainer, micro.batch, micro.packed, objective)


@contextmanager
def _precision(trainer: Trainer) -> Iterator[None]:
    with torch.autocast(trainer.backend.device.type, dtype=torch.bfloat16, enabled=trainer.bf16):
        yield


def _first_learned(batch: MicroBatch) -> int:
    """The first column that some row learns; prompts end before it, and nothing predicts column 0."""
    learned = (batch.aggregation > 0).any(dim=0)
    return max(int(learned.float().argmax()), 1) if bool(learned.any()) else 1


def _plain(model: Any, trainer: Trainer, batch: MicroBatch, objective: Objective) -> Scores:
    """Every row by itself: padded on the right, with its own copy of the media."""
    device = trainer.backend.device
    inputs = forward_inputs(trainer.family, batch, device)
    if trainer.backend.gathers or unscorable(trainer.model) is not None:
        return _by_logits(model, inputs, batch, objective)
    hidden = before_head(model, inputs).flatten(0, 1)
    places = torch.arange(batch.ids.numel()).view(batch.ids.shape) - 1
    return _scored(model, batch, hidden, places, objective)


def _by_logits(
    model: Any, inputs: dict[str, torch.Tensor], batch: MicroBatch, objective: Objective
) -> Scores:
    """By the model's own logits, from the first token that some row learns on: where they are more than its head's, or
    its head's weights are there only while it runs.
    """
    first = _first_learned(batch)
    keep = batch.ids.shape[1] - first + 1
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, -keep:-1]
    with torch.autocast(logits.device.type, enabled=False):
        targets = batch.ids[:, first:].to(logits.device)
        logprobs, entropy = token_logprobs(logits, targets, objective.banned, objective.temperature)
        active = batch.aggregation[:, first:].to(logits.device) > 0

        def divergence(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
            assert objective.token_weights is not None
            return objective.token_weights.divergence(logits[rows, low:high], active[rows, low:high])

        return Scores(logprobs, entropy, _weights(batch, objective, active, divergence), first)


def _shared(model: Any, trainer: Trainer, batch: MicroBatch, packed: Packed, objective: Objective) -> Scores:
    """The packed row."""
    hidden = hidden_states(model, trainer.family, packed, trainer.backend.device)
    # where the token before each stands: of a row's first written token that is the end of the shared prompt
    places = torch.full(batch.ids.shape, 0)
    for i, place in enumerate(packed.places):
        places[i, 1 : len(place)] = place[:-1]
    return _scored(model, batch, hidden, places, objective)


def _scored(
    model: Any, batch: MicroBatch, hidden: torch.Tensor, places: torch.Tensor, objective: Objective
) -> Scores:
    """What rows learn, some of it at a time; `hidden` [T, H] at `places` [B, L] is what tells each token."""
    device, first = hidden.device, _first_learned(batch)
    head, vocabulary = head_of(model), _vocabulary(model)
    learned = batch.aggregation > 0
    learned[:, 0] = False  # nothing tells it
    row, column = learned.nonzero(as_tuple=True)
    ids = batch.ids[row, column].to(device)
    before = hidden.index_select(0, places[row, column].to(device))
    values = hidden_logprobs(head, before, ids, vocabulary, objective.banned, objective.temperature)
    at = (row.to(device), (column - first).to(device))
    shape = (batch.ids.shape[0], batch.ids.shape[1] - first)
    logprobs, entropy = (x.new_zeros(shape).index_put(at, x) for x in values)
    active = learned[:, first:].to(device)

    def divergence(rows: torch.Tensor, low: int, high: int) -> torch.Tensor:
        here = places[rows.cpu(), first + low : first + high].to(device)
        return _divergence(head, hidden, here, active[rows, low:high], vocabulary, objective)

    return Scores(logprobs, entropy, _weights(batch, objective, active, divergence), first)


def _vocabulary(model: Any) -> int:
    return int(next(head_of(model).parameters()).shape[0])


def _divergence(
    head: Head,
    hidden: torch.Tensor,
    places: torch.Tensor,
    active: torch.Tensor,
    vocabulary: int,
    objective: Objective,
) -> torch.Tensor:
    """A group's divergence [C] at each column, from the hidden states at `places` [G, C], some columns at a time."""
    assert objective.token_weights is not None
    size = max(1, CHUNK_ELEMENTS // (vocabulary * len(places)))
    pieces = [
        objective.token_weights.divergence(head(hidden[some]), mask)
        for some, mask in zip(places.split(size, dim=1), active.split(size, dim=1), strict=True)
    ]
    return torch.cat(pieces)


@torch.no_grad()
def _weights(
    batch: MicroBatch, objective: Objective, active: torch.Tensor, divergence: Any
) -> torch.Tensor | None:
    """Method-made weights [B, K], group by group. Rows of a group share their prompt, so columns align.

    Args:
        active: bool [B, K], the tokens that are learned.
        divergence: (rows of a group, first column, last column exclusive) -> divergence [columns], of the
            full-vocabulary distribution at temperature 1, without the ban.
    """
    if objective.token_weights is None:
        return None
    weights = torch.ones(active.shape, device=active.device)
    for group in batch.groups.unique().tolist():
        rows = (batch.groups == group).nonzero().flatten().to(active.device)
        columns = active[rows].any(dim=0).nonzero().flatten()
        if group < 0 or not len(columns):
            continue
        low, high = int(columns[0]), int(columns[-1]) + 1
        found = divergence(rows, low, high)
        weights[rows, low:high] = objective.token_weights.weights(found, active[rows, low:high])
    return weights
