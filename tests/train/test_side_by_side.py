"""Several questions on one picture in one row: loss and every gradient as if each had a row of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmreason.data.loader import collate
from mmreason.model import packed
from mmreason.model.load import Loaded, load_model
from mmreason.model.shared_fit import needs_side_by_side, unpackable
from mmreason.objective import sft_sample
from mmreason.render import Renderer, side_by_side
from mmreason.schema import ModelConfig
from mmreason.train.prepare import prepare
from mmreason.train.run import _method
from mmreason.train.scoring import Micro
from mmreason.train.step import Objective, micro_loss
from mmreason.types import Message, Part, Rendered, TrainingSample
from tests.train import small
from tests.train.rows import picture_sample
from tests.train.test_step import trainer_of

QUESTIONS = ("how many red things", "red", "what colour is the second thing of all", "where is it")
Result = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture
def loaded(assembled_folder: Path) -> Loaded:
    return load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)


def _rows(loaded: Loaded, picture: int, questions: tuple[str, ...] = QUESTIONS) -> list[Rendered]:
    sample, media = picture_sample(picture)
    rows = []
    for i, question in enumerate(questions):
        user = Message("user", (Part("image", medium=0), Part("text", text=question)))
        answer = Message("assistant", (Part("text", text="<think>a</think>" + "b " * (i + 1)),))
        one = replace(sample, id=f"{sample.id}.{i}", messages=(user, answer))
        rows.append(Renderer(loaded.processor).full(one, media))
    return rows


def _run(loaded: Loaded, rows: list[TrainingSample]) -> Result:
    trainer = trainer_of(loaded)
    trainer.model.zero_grad()
    loss, _ = micro_loss(trainer, Micro(collate(rows, 0), None), Objective())
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


def _same(one: Result, other: Result) -> bool:
    if abs(one[0] - other[0]) > 1e-4 * abs(one[0]) or one[1].keys() != other[1].keys():
        return False
    return all((g - other[1][n]).norm() <= 1e-4 * g.norm() + 1e-7 for n, g in one[1].items())


def test_loss_and_gradients_are_those_of_single_rows(loaded: Loaded) -> None:
    """Ragged questions, two pictures, and a row of one question in the same micro-batch."""
    groups = [_rows(loaded, 0), _rows(loaded, 2, QUESTIONS[:2]), _rows(loaded, 4, QUESTIONS[:1])]
    single = _run(loaded, [sft_sample(row) for group in groups for row in group])
    together = _run(loaded, [sft_sample(side_by_side(group)) for group in groups])
    assert _same(single, together)


@pytest.mark.parametrize("mutant", ["mask", "positions"])
def test_broken_variants_differ(loaded: Loaded, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(loaded, 0)
    single = _run(loaded, [sft_sample(row) for row in rows])
    if mutant == "mask":  # every question sees the ones before it
        monkeypatch.setattr(
            "mmreason.model.family.segment_mask", lambda s: packed.segment_mask(torch.where(s > 0, 0, s))
        )
    else:  # positions run on through the row
        monkeypatch.setattr(
            "mmreason.model.family.segment_positions", lambda s: torch.arange(s.shape[1]).expand_as(s)
        )
    assert not _same(single, _run(loaded, [sft_sample(side_by_side(rows))]))


def test_segments_by_hand() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    assert packed.segment_positions(segments)[0, :5].tolist() == [0, 1, 2, 3, 2]
    seen = (packed.segment_mask(segments)[0, 0] == 0).int().tolist()
    assert seen[:5] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
    ]


def test_rows_on_other_media_are_refused(loaded: Loaded) -> None:
    one, two = _rows(loaded, 0, QUESTIONS[:1])[0], Renderer(loaded.processor).full(*picture_sample(1, True))
    with pytest.raises(ValueError, match="do not show the same media first"):
        side_by_side([one, two])


def test_what_cannot_read_such_rows_is_refused(loaded: Loaded, native_folder: Callable[[str], Path]) -> None:
    config = ModelConfig(model_name_or_path=str(native_folder("qwen2_vl")))
    native = load_model(config, texts=lambda: [], seed=0)
    for mode in ("auto", "require"):
        needs_side_by_side(
            native.model, "qwen_vl", "flash_attention_2", unpackable(native.model, mode, gathers=False)
        )
    with pytest.raises(ValueError, match="shared_prefix is off, and this model is qwen_vl.* to auto"):
        needs_side_by_side(native.model, "qwen_vl", "sdpa", unpackable(native.model, "off", gathers=False))
    with pytest.raises(ValueError, match="ZeRO-3 has the head's weights.*questions_per_row to 1$"):
        needs_side_by_side(native.model, "qwen_vl", "sdpa", unpackable(native.model, "auto", gathers=True))
    native.model.get_decoder().layers[1].self_attn.attention_dropout = 0.1
    with pytest.raises(
        ValueError, match=r"layers.1.self_attn.attention_dropout is 0.1.*questions_per_row to 1$"
    ):
        needs_side_by_side(native.model, "qwen_vl", "sdpa", unpackable(native.model, "auto", gathers=False))
    padded = unpackable(loaded.model, "off", gathers=False)
    needs_side_by_side(loaded.model, "assembled", "sdpa", padded)
    with pytest.raises(ValueError, match="takes masks"):
        needs_side_by_side(loaded.model, "assembled", "flash_attention_2", padded)


@pytest.mark.parametrize("together", [1, 3])
def test_an_epoch_learns_every_question_once(tmp_path: Path, together: int) -> None:
    sizes = {"questions_per_row": together, "per_device_train_batch_size": 2, "replay": {"base": 0.25}}
    epoch = small.SFT | sizes | {"max_steps": None, "num_train_epochs": 1.0}
    recipe = small.recipe(tmp_path / "run", stages=[epoch])
    context = prepare(recipe, tmp_path / "run", None)
    budget, method = _method(context, recipe.stages[0])
    assert budget.steps is not None
    drawn = [method.collect(0.0, step).rows for step in range(budget.steps)]
    ids = [name for rows in drawn for row in rows for name in row.rendered.sample_id.split("+")]
    warm = {sample.id for sample in context.sources["warm"]}
    assert abs(sum(name in warm for name in ids) - len(warm)) <= 2 * together  # steps are whole
