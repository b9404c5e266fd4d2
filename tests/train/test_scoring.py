"""Scores of rows by themselves: those of the model's own logits, without logits of prompts ever being made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mmreason.data.loader import collate
from mmreason.model.family import forward_inputs
from mmreason.model.load import Loaded, load_model
from mmreason.model.shared_fit import unscorable
from mmreason.objective import logprobs as pieces
from mmreason.objective import token_logprobs, tw_grpo
from mmreason.train import scoring
from mmreason.train.scoring import Micro, Scores, scores
from mmreason.types import MicroBatch
from tests.rollout.mixes import model_of
from tests.tiny import QWEN3, TEXTS, tiny_model_config
from tests.train.rows import grpo_rows, sft_rows
from tests.train.test_step import difference, objective_of, trainer_of

KINDS = ("assembled", "qwen2_5_vl")


@pytest.fixture(params=KINDS)
def loaded(request: pytest.FixtureRequest, native_folder: Callable[[str], Path]) -> Loaded:
    return model_of(request.param, native_folder)


def batch_of(loaded: Loaded) -> MicroBatch:
    """Two groups and two rows of none, with prompts of different lengths, some with a picture."""
    return collate([*grpo_rows(loaded.processor, 4), *sft_rows(loaded.processor, 2)], 0)


def everything(loaded: Loaded, batch: MicroBatch) -> Scores:
    """Of all logits of all columns, as the model gives them."""
    objective = objective_of(loaded)
    logits = loaded.model(**forward_inputs(loaded.family, batch, "cpu"), use_cache=False).logits
    values = token_logprobs(logits[:, :-1], batch.ids[:, 1:], objective.banned, objective.temperature)
    weights = torch.ones(batch.ids[:, 1:].shape)
    active = batch.aggregation[:, 1:] > 0
    told = tw_grpo()
    for group in (0, 1):
        rows = (batch.groups == group).nonzero().flatten()
        low, high = int(active[rows].any(0).float().argmax()), int(active[rows].any(0).nonzero().max()) + 1
        mask = active[rows, low:high]
        weights[rows, low:high] = told.weights(told.divergence(logits[rows, low:high], mask), mask)
    return Scores(*values, weights, 1)


def weighed(scored: Scores, batch: MicroBatch) -> list[torch.Tensor]:
    """Log-probabilities, entropy and weights of what is learned, row after row."""
    active = batch.aggregation[:, scored.first :] > 0
    assert scored.weights is not None
    return [x[active] for x in (scored.logprobs, scored.entropy, scored.weights)]


def gradients(loaded: Loaded, found: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    named = [(n, p) for n, p in loaded.model.named_parameters() if p.requires_grad]
    loss = (found[0] * torch.cos(torch.arange(len(found[0])) * 1.7)).sum()
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {n: g for (n, _), g in zip(named, grads, strict=True) if g is not None}


def plain(loaded: Loaded, batch: MicroBatch) -> Scores:
    objective = replace(objective_of(loaded), token_weights=tw_grpo())
    return scores(loaded.model, trainer_of(loaded), Micro(batch, None), objective)


def assert_same(loaded: Loaded, found: Callable[[], Scores]) -> None:
    batch = batch_of(loaded)
    wanted, got = (weighed(way, batch) for way in (everything(loaded, batch), found()))
    for one, other in zip(wanted, got, strict=True):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-5)
    assert difference(gradients(loaded, got), gradients(loaded, wanted)) < 1e-5


@pytest.mark.parametrize("chunk", [2**25, 1500])
def test_values_and_gradients_are_those_of_all_logits(
    loaded: Loaded, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", chunk)
    assert_same(loaded, lambda: plain(loaded, batch_of(loaded)))


def test_a_head_whose_logits_are_changed_is_scored_by_them() -> None:
    llm = {**QWEN3, "model_type": "granite", "logits_scaling": 8.0}
    loaded = load_model(tiny_model_config(llm=llm), texts=lambda: TEXTS, seed=0)
    reason = unscorable(loaded.model)
    assert reason is not None and reason.name == "after_the_head"
    assert_same(loaded, lambda: plain(loaded, batch_of(loaded)))


def one_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = scoring._scored
    monkeypatch.setattr(scoring, "_scored", lambda m, b, h, places, o: scored(m, b, h, places.roll(1), o))


def changes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "unscorable", lambda model: None)


@pytest.mark.parametrize("mutant", [one_too_late, changes_are_left_out])
def test_mutants_fail(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = QWEN3 if mutant is one_too_late else {**QWEN3, "model_type": "granite", "logits_scaling": 8.0}
    loaded = load_model(tiny_model_config(llm=llm), texts=lambda: TEXTS, seed=0)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_same(loaded, lambda: plain(loaded, batch_of(loaded)))


class Wide(TorchDispatchMode):
    """The most rows of any tensor of the vocabulary's width, but the head's own weights."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.most = vocabulary, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, out)
        return out

    def _see(self, x: torch.Tensor) -> None:
        if x.ndim and x.shape[-1] == self.vocabulary and x.numel() > self.vocabulary * self.width:
            self.most = max(self.most, x.numel() // self.vocabulary)


def test_no_logits_of_a_prompt_are_made(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even some, not even of the rows with the shortest prompt: what is learned is scored in pieces."""
    vocabulary, width = loaded.model.get_input_embeddings().weight.shape
    batch = collate(grpo_rows(loaded.processor, 4, lengths=[(40, 44), (48, 52)]), 0)
    learned = int((batch.aggregation > 0).sum())
    rows = width + 4  # a piece; more than the head's weights have, which are as wide turned over
    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", rows * vocabulary)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", rows * vocabulary)
    with Wide(vocabulary, width) as seen:
        found = weighed(plain(loaded, batch), batch)
        gradients(loaded, found)
    assert seen.most == rows < learned
    with Wide(vocabulary, width) as seen, torch.no_grad():
        everything(loaded, batch)
    assert seen.most > batch.ids.numel() // 2 > rows
