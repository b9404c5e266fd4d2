"""The step with shared prompts against the plain step: loss, gradient, fixed values, token weights; and its check."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.model import shared_attention
from mmreason.model.load import Loaded, load_model
from mmreason.model.shared_attention import Layout, Span
from mmreason.objective import tw_grpo
from mmreason.schema import ModelConfig
from mmreason.train import scoring, shared_check
from mmreason.train.micro import Sharing, plan
from mmreason.train.run import train
from mmreason.train.step import Objective, Trainer, fixed_logprobs, shown_weights, train_step
from mmreason.types import TrainingSample
from tests.train import small
from tests.train.rows import grpo_rows, sft_rows
from tests.train.test_step import difference, objective_of, step_grads, trainer_of

Folder = Callable[[str], Path]


@pytest.fixture
def loaded(assembled_folder: Path) -> Loaded:
    return load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)


def sharing(loaded: Loaded, mode: Any = "auto", **keys: Any) -> Trainer:
    trainer = trainer_of(loaded, **keys)
    trainer.sharing = Sharing(mode)
    return trainer


def rows_near(loaded: Loaded, count: int = 8) -> list[TrainingSample]:
    """Groups (every other one looks at a picture) whose old values lie around the present ones; some tokens clip."""
    rows = grpo_rows(loaded.processor, count)
    now = fixed_logprobs(loaded.model, trainer_of(loaded), rows, objective_of(loaded))
    drift = [0.5 * torch.cos(torch.arange(len(row)) * 2.3) for row in rows]
    return [
        replace(r, old_logprobs=n + d, ref_logprobs=n - d) for r, n, d in zip(rows, now, drift, strict=True)
    ]


def fresh(loaded: Loaded) -> Loaded:
    """The same model before any step."""
    return load_model(
        ModelConfig(model_name_or_path=str(loaded.model.name_or_path)), texts=lambda: [], seed=0
    )


# --- the same step


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
@pytest.mark.parametrize("weighed", [False, True])
def test_loss_and_gradient_are_the_plain_ones(
    loaded: Loaded, weighed: bool, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*rows_near(loaded), *sft_rows(loaded.processor, 2)]  # two rows without a group beside the groups
    objective = replace(objective_of(loaded), token_weights=tw_grpo() if weighed else None)
    value, wanted = step_grads(trainer_of(loaded), rows, objective)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 1000)  # a few positions at a time
    again = fresh(loaded)
    loss, got = step_grads(sharing(again, max_tokens=max_tokens), rows, objective)
    assert loss == pytest.approx(value, rel=1e-5, abs=1e-6) and difference(got, wanted) < 2e-5


def test_metrics_tell_what_was_shared(loaded: Loaded) -> None:
    rows = [*rows_near(loaded), *sft_rows(loaded.processor, 2)]
    plain = train_step(trainer_of(loaded), rows, objective_of(loaded), 0.0)
    shared = train_step(sharing(fresh(loaded)), rows, objective_of(loaded), 0.0)
    assert shared["shared_prefix/rows"] == 10 and "shared_prefix/rows" not in plain
    assert shared["tokens/input"] == plain["tokens/input"] and shared["rows"] == plain["rows"] == 10
    packed = sum(len(row) for row in rows[:8]) - sum(
        len(row) - int(row.rendered.sampled.sum()) for row in rows[:8:2]
    )
    assert shared["tokens/forward"] == packed + sum(len(row) for row in rows[8:])
    assert shared["tokens/forward"] < 0.8 * plain["tokens/forward"]
    for name in ("entropy", "kl", "nll", "clip_ratio/region_mean", "tokens/learned"):
        if name in plain:
            assert shared[name] == pytest.approx(plain[name], rel=1e-4)


def test_fixed_values_and_shown_weights_are_the_plain_ones(loaded: Loaded) -> None:
    rows = grpo_rows(loaded.processor, 8)
    objective = replace(objective_of(loaded), token_weights=tw_grpo())
    for way in (
        lambda t: fixed_logprobs(loaded.model, t, rows, objective),
        lambda t: shown_weights(t, rows, objective),
    ):
        plain, shared = way(trainer_of(loaded)), way(sharing(loaded))
        for row, one, other in zip(rows, plain, shared, strict=True):
            assert len(one) == len(other) == len(row) and bool(other[row.aggregation > 0].all())
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_groups_fill_the_token_budget(loaded: Loaded) -> None:
    rows = grpo_rows(loaded.processor, 8)
    everything = plan(loaded.model, loaded.family, rows, 10_000, Sharing("auto"))
    assert len(everything) == 1 and sorted(everything[0].rows) == list(range(8))
    sizes = [shared.tokens([rows[i].rendered for i in chosen]) for shared, chosen in everything[0].groups]
    assert sizes == sorted(sizes, reverse=True)
    two = plan(loaded.model, loaded.family, rows, sizes[0] + sizes[-1], Sharing("auto"))
    assert len(two) > 1 and [len(p.groups) for p in two][0] == 2  # the smallest still fits beside the largest
    single = plan(loaded.model, loaded.family, rows, 1, Sharing("auto"))
    assert [len(p.groups) for p in single] == [1] * 4


# --- what cannot share


def test_dropout_is_named_and_goes_the_plain_way(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    loaded.model.language_model.model.layers[0].self_attn.attention_dropout = 0.1
    rows = rows_near(loaded)
    trainer = sharing(loaded)
    with caplog.at_level(logging.WARNING):
        first = train_step(trainer, rows, objective_of(loaded), 0.0)
        second = train_step(trainer, rows, objective_of(loaded), 0.0)
    for metrics in (first, second):
        assert metrics["shared_prefix/plain/dropout"] == 8 and metrics["shared_prefix/rows"] == 0
    said = [record.message for record in caplog.records if "one by one (dropout)" in record.message]
    assert len(said) == 1 and "layers.0.self_attn.attention_dropout is 0.1" in said[0]
    with pytest.raises(
        ValueError, match="shared_prefix: require cannot be met in training: .*attention_dropout"
    ):
        train_step(sharing(loaded, "require"), rows, objective_of(loaded), 0.0)


def test_one_group_that_begins_otherwise_leaves_the_others_alone(loaded: Loaded) -> None:
    rows = rows_near(loaded)
    ids = rows[1].rendered.ids.clone()
    ids[0] += 1
    rows[1] = replace(rows[1], rendered=replace(rows[1].rendered, ids=ids))
    value, wanted = step_grads(trainer_of(loaded), rows, objective_of(loaded))
    again = fresh(loaded)
    trainer = sharing(again)
    metrics = train_step(trainer, rows, objective_of(loaded), 0.0)
    assert metrics["shared_prefix/plain/beginnings"] == 2 and metrics["shared_prefix/rows"] == 6
    loss, got = step_grads(sharing(fresh(loaded)), rows, objective_of(loaded))
    assert loss == pytest.approx(value, rel=1e-5, abs=1e-6) and difference(got, wanted) < 2e-5


# --- the check of the first micro-batch


def spoiled(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    """A leak between suffixes, or a prompt whose gradient is lost."""
    real = shared_attention._seen_pieces

    class Detached(shared_attention._Run):
        def add(self, x: torch.Tensor, values: torch.Tensor) -> None:
            pass

    def cut(span: Span, window: int | None, device: torch.device) -> list[shared_attention._Piece]:
        keys = Detached(span.start, span.start + span.prompt)
        return [replace(piece, keys=keys) for piece in real(span, window, device)]

    if mutant == "detached":
        monkeypatch.setattr(shared_attention, "_seen_pieces", cut)
        return
    pieces = Layout.pieces

    def leaking(self: Layout, window: int | None, device: torch.device) -> list[shared_attention._Piece]:
        spans = tuple(replace(span, lengths=(sum(span.lengths),)) for span in self.spans)
        return pieces(Layout(spans), window, device)

    monkeypatch.setattr(Layout, "pieces", leaking)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("mutant", "message"),
    [
        ("leak", r"the first layer to differ is layer 0 \(full_attention, Qwen3DecoderLayer\)"),
        ("detached", r"values agree, gradients do not, most of all in (the vision|layer \d|the projector)"),
    ],
)
def test_a_mismatch_stops_the_run_and_names_the_layer(
    mutant: str, message: str, bf16: bool, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in grpo_rows(loaded.processor, 6) if row.group != 1]  # pictures in both groups
    spoiled(monkeypatch, mutant)
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    trainer = sharing(loaded)
    trainer.bf16 = bf16
    with pytest.raises(ValueError, match=message):
        train_step(trainer, rows, objective_of(loaded), 0.0)
    assert all(torch.equal(before[n], p) for n, p in loaded.model.named_parameters())
    trainer.check = False
    train_step(trainer, rows, objective_of(loaded), 0.0)  # nothing else would have noticed


@pytest.mark.parametrize("bf16", [False, True])
def test_the_check_leaves_no_trace_and_comes_once(
    bf16: bool, loaded: Loaded, caplog: Any, monkeypatch: Any
) -> None:
    rows = rows_near(loaded)
    trainer, other = sharing(loaded), sharing(fresh(loaded))
    trainer.bf16 = other.bf16 = bf16
    other.check = False
    calls: list[shared_check.Kind] = []
    real = shared_check._check

    def counted(trainer: Trainer, some: Any, objective: Objective) -> None:
        calls.append(shared_check._kind(some[0]))
        real(trainer, some, objective)

    monkeypatch.setattr(shared_check, "_check", counted)
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            train_step(trainer, rows, objective_of(loaded), 0.0)
            train_step(other, rows, objective_of(loaded), 0.0)
    kinds = {("group" if row.group >= 0 else "alone", frozenset(row.rendered.media)) for row in rows}
    assert len(calls) == len(kinds) and set(calls) == kinds  # once for each kind, in two steps
    assert "packed rows checked on 2 of them" in caplog.text
    assert torch.equal(state, torch.get_rng_state())
    for one, twin in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, twin)


def test_a_group_with_one_learning_row_settles_nothing(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can leak to a row that is alone: the check stays open until a group has two that learn."""
    rows = [row for row in grpo_rows(loaded.processor, 6) if row.group == 0]
    alone = [rows[0], *(replace(row, aggregation=torch.zeros_like(row.aggregation)) for row in rows[1:])]
    spoiled(monkeypatch, "leak")
    trainer = sharing(loaded)
    train_step(trainer, alone, objective_of(loaded), 0.0)
    assert not trainer.checked
    with pytest.raises(ValueError, match="does not give what the plain one does"):
        train_step(trainer, rows, objective_of(loaded), 0.0)


# --- a whole run


def test_a_run_shares_and_one_with_off_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    stages = [{**small.GRPO, "max_steps": 2, "gate": {"name": "none"}}]
    lines = {}
    for mode in ("require", "off"):
        train(small.recipe(tmp_path / mode, stages=stages, shared_prefix=mode, eval={"data": []}))
        lines[mode] = small.metrics(tmp_path / mode)
    for ours, theirs in zip(lines["require"], lines["off"], strict=True):
        assert ours["shared_prefix/rows"] == ours["rows"] and "shared_prefix/rows" not in theirs
        assert ours["tokens/forward"] < theirs["tokens/forward"]
