"""SFT rows packed behind each other, their questions behind one prompt: loss and gradients of rows by themselves.

Measured here: losses within 2e-7 relative (allowed 1e-6), each parameter's gradient within 7e-6 (allowed 1e-4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.model import shared_attention
from mmreason.model.load import Loaded, gradient_checkpointing
from mmreason.model.parts import add_lora
from mmreason.model.shared_attention import Layout, Span
from mmreason.model.shared_rows import Packed
from mmreason.objective import sft_sample
from mmreason.render import apart, question_places, side_by_side
from mmreason.schema import ModelConfig
from mmreason.train import micro, shared_check
from mmreason.train.micro import Sharing, plan
from mmreason.train.run import train
from mmreason.train.step import Objective, micro_loss, train_step
from mmreason.types import Rendered, TrainingSample
from tests.model.groups import apart as difference
from tests.model.groups import rows_of
from tests.rollout.mixes import ALL, SENSES, model_of, prompts_of
from tests.train import small
from tests.train.rows import sft_rows
from tests.train.test_ranks_side_by_side import write_questions
from tests.train.test_step import trainer_of

Folder = Callable[[str], Path]
LOSS, GRADIENTS = 1e-6, 1e-4
RAGGED = [5, 1, 9, 3]


def questions_of(loaded: Loaded, media: Sequence[str]) -> list[list[Rendered]]:
    """Up to four rows of ragged length on each of the media; one on a prompt without any."""
    prompts = prompts_of(loaded, media)
    return [
        rows_of(loaded, prompt, RAGGED[: 4 - i % 2] if kinds else [6], i)
        for i, (prompt, kinds) in enumerate(zip(prompts, media, strict=True))
    ]


def samples(groups: Sequence[Sequence[Rendered]], together: int) -> list[TrainingSample]:
    """Training rows, each of up to `together` questions of a group."""
    return [
        sft_sample(side_by_side(group[i : i + together]))
        for group in groups
        for i in range(0, len(group), together)
    ]


def learned(
    loaded: Loaded, rows: Sequence[TrainingSample], mode: Any, max_tokens: int = 10_000
) -> tuple[float, tuple[list[torch.Tensor], dict[str, torch.Tensor]]]:
    """The loss of the rows, and it with its gradients as `difference` takes them; the step without its update."""
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing(mode)
    trainer.model.train()
    trainer.model.zero_grad(set_to_none=True)
    value = 0.0
    for planned in plan(loaded.model, loaded.family, rows, max_tokens, trainer.sharing):
        one = micro.build(loaded.model, loaded.family, rows, planned, 0, trainer.backend.device)
        assert (one.packed is None) == (mode == "off")
        with one.attention(loaded.model):
            loss, _ = micro_loss(trainer, one, Objective())
            loss.backward()
        value += float(loss.detach())
    named = [(n, p) for n, p in loaded.model.named_parameters() if p.requires_grad]
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named}
    return value, ([torch.zeros(1)], found)


def assert_equal(loaded: Loaded, groups: Sequence[Sequence[Rendered]], budgets: Sequence[int]) -> None:
    """Rows of one question and of four, in micro-batches of at most so many tokens, against padded ones."""
    wanted, gradients = learned(loaded, samples(groups, 1), "off")
    for together, max_tokens in product((1, 4), budgets):
        value, found = learned(loaded, samples(groups, together), "require", max_tokens)
        _, worst, name = difference(gradients, found)
        assert abs(value - wanted) <= LOSS * abs(wanted) and worst <= GRADIENTS, (value, wanted, worst, name)


# --- the same step


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_of_model_and_medium(kind: str, native_folder: Folder) -> None:
    """Pictures, films, sounds, films with their sound, and none: one row, and several by a budget of tokens."""
    loaded = model_of(kind, native_folder)
    groups = questions_of(loaded, SENSES[kind])
    assert_equal(loaded, groups, (10_000, 60))


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl", "qwen3_vl"])
def test_adapters_and_recomputed_activations(kind: str, native_folder: Folder) -> None:
    loaded = model_of(kind, native_folder)
    groups = questions_of(loaded, SENSES[kind][:4])
    gradient_checkpointing(loaded.model, True)
    assert_equal(loaded, groups, (10_000,))
    gradient_checkpointing(loaded.model, False)
    config = ModelConfig(model_name_or_path="unused", use_peft=True, lora_r=4)
    learner = add_lora(loaded.model, loaded.family, config)
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    adapted = replace(loaded, model=learner)
    assert_equal(adapted, groups, (10_000,))
    gradient_checkpointing(learner, True)
    learner.enable_input_require_grads()
    assert_equal(adapted, groups, (10_000,))


def test_padded_questions_are_the_same_too(native_folder: Folder) -> None:
    """`off` reads several questions by a mask: the oracle of rows with segments agrees with rows by themselves."""
    loaded = model_of("assembled", native_folder)
    groups = questions_of(loaded, SENSES["assembled"])
    wanted, gradients = learned(loaded, samples(groups, 1), "off")
    value, found = learned(loaded, samples(groups, 4), "off")
    assert abs(value - wanted) <= LOSS * wanted and difference(gradients, found)[1] <= GRADIENTS


# --- mistakes


def joined(packed: Packed, spans: Sequence[Span]) -> Packed:
    return replace(packed, layout=Layout(tuple(spans)))


def rows_leak(packed: Packed) -> Packed:
    """The first two rows are taken for one: the second sees the first."""
    one, two, *rest = packed.layout.spans
    assert not any((*one.lengths, *two.lengths))
    return joined(packed, [Span(one.start, one.prompt + two.prompt, ()), *rest])


def questions_leak(packed: Packed) -> Packed:
    """All questions of a row are taken for one."""
    return joined(packed, [replace(span, lengths=(sum(span.lengths),)) for span in packed.layout.spans])


def positions_run_on(packed: Packed) -> Packed:
    """As if the packed row were one text."""
    steps = torch.arange(packed.ids.shape[1]).expand_as(packed.positions)
    return replace(packed, positions=steps)


def segment_forgotten(packed: Packed) -> Packed:
    """The last two questions of each row are taken for one, which runs on."""
    positions, spans = packed.positions.clone(), []
    for span in packed.layout.spans:
        *before, last, end = span.lengths
        positions[:, span.end - end : span.end] += last
        spans.append(replace(span, lengths=(*before, last + end)))
    return replace(joined(packed, spans), positions=positions)


def prompt_alone(packed: Packed) -> Packed:
    """Questions do not see their prompt: each is a row of its own."""
    runs = [
        Span(start, length, ())
        for span in packed.layout.spans
        for start, length in [
            (span.start, span.prompt),
            *zip(span.begins, span.lengths, strict=True),
        ]
    ]
    return joined(packed, runs)


MUTANTS = [
    *((kind, rows_leak, 1) for kind in ("assembled", "qwen2_5_vl")),
    ("qwen2_5_vl", positions_run_on, 1),  # of one axis they are relative: a row by itself may stand anywhere
    *product(
        ("assembled", "qwen2_5_vl"),
        (questions_leak, positions_run_on, segment_forgotten, prompt_alone),
        (4,),
    ),
]


@pytest.mark.parametrize(("kind", "mutant", "together"), MUTANTS)
def test_a_wrongly_packed_row_shows(
    kind: str,
    mutant: Callable[[Packed], Packed],
    together: int,
    native_folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = model_of(kind, native_folder)
    groups = questions_of(loaded, ("i", "ii"))
    wanted, gradients = learned(loaded, samples(groups, 1), "off")
    real = micro.pack_rows
    monkeypatch.setattr(micro, "pack_rows", lambda *args: mutant(real(*args)))
    value, found = learned(loaded, samples(groups, together), "require")
    assert abs(value - wanted) > 100 * LOSS * wanted or difference(gradients, found)[1] > 100 * GRADIENTS


# --- which rows go together


def test_rows_fill_the_token_budget(native_folder: Folder) -> None:
    loaded = model_of("assembled", native_folder)
    rows = samples(questions_of(loaded, SENSES["assembled"]), 2)
    lengths = [len(row) for row in rows]
    for budget in (max(lengths), 2 * max(lengths), sum(lengths)):
        plans = plan(loaded.model, loaded.family, rows, budget, Sharing("auto"))
        assert sorted(i for p in plans for i in p.rows) == list(range(len(rows)))
        assert all(sum(lengths[i] for i in p.rows) <= budget for p in plans)
        assert len(plans) <= 2 * sum(lengths) / budget + 1  # no two of them would fit into one
    assert len(plans) == 1
    metrics = train_step_metrics(loaded, rows)
    assert metrics["tokens/forward"] == metrics["tokens/input"] == sum(lengths)
    assert metrics["shared_prefix/rows"] == metrics["rows"] == len(rows)


def train_step_metrics(loaded: Loaded, rows: list[TrainingSample]) -> dict[str, float]:
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing("require")
    return train_step(trainer, rows, Objective(), 0.0)


def test_dropout_is_named_and_rows_are_padded(native_folder: Folder) -> None:
    loaded = model_of("assembled", native_folder)
    loaded.model.language_model.model.layers[0].self_attn.attention_dropout = 0.1
    rows = sft_rows(loaded.processor, 4)
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing("auto")
    metrics = train_step(trainer, rows, Objective(), 0.0)
    assert metrics["shared_prefix/plain/dropout"] == 4 and metrics["shared_prefix/rows"] == 0
    assert metrics["tokens/forward"] == 4 * max(len(row) for row in rows)


def test_questions_of_a_row_come_apart_again(native_folder: Folder) -> None:
    loaded = model_of("assembled", native_folder)
    (rows,) = questions_of(loaded, ("av",))
    for one, row in zip(apart(side_by_side(rows)), rows, strict=True):
        assert one.segments is None and one.media is rows[0].media
        for name in ("ids", "roles", "sampled", "token_types"):
            assert torch.equal(getattr(one, name), getattr(row, name))
    assert apart(rows[0]) == [rows[0]]
    places = question_places(torch.tensor([0, 0, 1, 1, 2]))
    assert [place.tolist() for place in places] == [[0, 1, 2, 3], [0, 1, 4]]
    assert [place.tolist() for place in question_places(torch.zeros(2))] == [[0, 1]]


def test_short_runs_of_like_lengths_are_computed_side_by_side() -> None:
    spans = (Span(0, 200, (9, 20, 12)), Span(241, 190, ()), Span(431, 4, (0, 2)))
    cpu, gpu = (shared_attention._alike(spans, torch.device(name)) for name in ("cpu", "cuda"))
    assert cpu == [[(0, 200)], [(241, 190)], [(209, 20), (229, 12)], [(200, 9), (431, 4), (435, 2)]]
    assert gpu == [[(0, 200), (241, 190)], [(209, 20), (229, 12)], [(200, 9), (431, 4), (435, 2)]]


# --- the check of the first micro-batch


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl"])
def test_the_first_step_is_checked(
    kind: str, together: int, native_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model_of(kind, native_folder)
    rows = samples(questions_of(loaded, ("i", "ii", "")), together)
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing("auto")
    train_step(trainer, rows, Objective(), 0.0)
    several = [row for row in rows if together == 1 or row.rendered.segments is not None]
    assert trainer.checked == {shared_check._kind(row) for row in several}  # one row alone cannot tell a leak
    real = Layout.pieces

    def leaking(self: Layout, window: int | None, device: torch.device) -> Any:
        first, last = self.spans[0], self.spans[-1]
        if together > 1:
            spans = tuple(replace(span, lengths=(sum(span.lengths),)) for span in self.spans)
        else:
            spans = (Span(first.start, last.end - first.start, ()),)
        return real(Layout(spans), window, device)

    monkeypatch.setattr(Layout, "pieces", leaking)
    before = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    trainer.checked.clear()
    with pytest.raises(ValueError, match=r"the first layer to differ is layer 0 \(full_attention"):
        train_step(trainer, rows, Objective(), 0.0)
    assert all(torch.equal(before[n], p) for n, p in loaded.model.named_parameters())


def test_every_kind_is_checked_once_a_leak_can_show(native_folder: Folder) -> None:
    """The only row of a kind beside one of another, several questions of a row by themselves, a row alone not."""
    loaded = model_of("assembled", native_folder)
    groups = questions_of(loaded, ("i", "v", ""))
    rows = [sft_sample(group[0]) for group in groups]
    (shared,) = samples(groups[:1], 4)

    def candidates(
        rows: list[TrainingSample], checked: set[shared_check.Kind]
    ) -> dict[Any, list[TrainingSample]]:
        plans = plan(loaded.model, loaded.family, rows, 1, Sharing("require"))
        return shared_check._candidates(rows, plans, checked)

    found = candidates([*rows, shared], set())
    kinds = {shared_check._kind(row): row for row in [*rows, shared]}
    assert found.keys() == kinds.keys() and len(kinds) == 4
    for kind, some in found.items():
        assert some[0] is kinds[kind] and len(some) == (1 if kind[0] == "questions" else 2)
    known = shared_check._kind(rows[0])
    assert candidates([*rows, shared], {known}).keys() == kinds.keys() - {known}
    assert candidates(rows[:1], set()) == {}


# --- a whole run


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl"])
def test_several_questions_a_row_learn_what_single_ones_do(
    kind: str, native_folder: Folder, assembled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 questions on 8 pictures and none, in one step of SGD: the same weights, from fewer tokens."""
    small.without_probe(monkeypatch)
    folder = assembled_folder if kind == "assembled" else native_folder(kind)
    data = {"rows": {"path": str(write_questions(tmp_path / "rows"))}}
    lines = {}
    for together, rows in ((1, 21), (4, 11)):
        stage: dict[str, Any] = {
            "type": "sft",
            "name": "sft",
            "data": ["rows"],
            "rationale": "free",
            "optimizer": "sgd",
        }
        stage |= {"learning_rate": 0.1, "warmup_ratio": 0.0, "questions_per_row": together, "max_steps": 1}
        keys = {"data": data, "model": {"model_name_or_path": str(folder)}, "shared_prefix": "require"}
        stage |= {"per_device_train_batch_size": rows}
        train(small.recipe(tmp_path / str(together), stages=[stage], eval={"data": []}, **keys))
        (lines[together],) = small.metrics(tmp_path / str(together))
        assert lines[together]["rows"] == lines[together]["shared_prefix/rows"] == rows
    assert lines[4]["tokens/forward"] < lines[1]["tokens/forward"]
    assert lines[4]["loss"] == pytest.approx(lines[1]["loss"], rel=LOSS)
    one, four = (small.weights(tmp_path / name / "model") for name in ("1", "4"))
    assert max(float((one[n].float() - four[n].float()).abs().max()) for n in one) < 1e-6
