"""The perception pretask: what it learns, what it leaves alone, and how features find their targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmreason.model.load import Loaded
from mmreason.recipe import load_recipe
from mmreason.schema import PretaskStage
from mmreason.train.prepare import prepare
from mmreason.train.pretask import Pretask, by_medium, grids
from mmreason.train.run import train
from tests.train import small
from tests.train.killed import killed
from tests.train.test_step import trainer_of

PRETASK: dict[str, Any] = {
    "type": "pretask",
    "name": "perceive",
    "data": ["warm"],
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 4,
    "max_steps": 60,
    "save_steps": 15,
}
SFT = small.SFT | {"freeze": ["vision"]}


def _model(image_size: int) -> dict[str, Any]:
    return {"assemble": small.ASSEMBLE | {"image_size": image_size, "spatial_merge": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretask") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small.without_probe(patch)
        train(small.recipe(out, stages=[PRETASK, SFT], model=_model(64), eval={"data": []}))
    return out


def test_it_learns_to_name_the_cells(run: Path) -> None:
    lines = [line for line in small.metrics(run) if line["stage"] == "perceive"]
    for name in ("colour", "shape"):
        key = f"pretask/image/{name}/accuracy_things"
        first, last = (sum(line[key] for line in part) / len(part) for part in (lines[:10], lines[-10:]))
        assert last > 0.9 > 0.6 > first, (name, first, last)


def test_the_llm_learns_its_words_only_and_frozen_parts_stay(run: Path) -> None:
    fresh = _initial(run)
    perceived, after = (small.weights(run / "stages" / name) for name in ("perceive", "sft"))
    changed = {name for name in perceived if not torch.equal(fresh[name], perceived[name])}
    parts = {name.split(".")[0] for name in changed}
    assert parts == {"vision_tower", "vision_projector", "language_model"}
    assert [n for n in changed if n.startswith("language_model")] == [
        "language_model.model.embed_tokens.weight"
    ]
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], perceived[name])}
    assert moved == {"vision_projector", "language_model"}  # the second stage freezes the tower


def test_killed_and_resumed_it_is_the_same_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    recipe = small.recipe(copy, stages=[PRETASK, SFT], model=_model(64), eval={"data": []})
    killed(recipe.model_dump(), step=40)
    small.without_probe(monkeypatch)
    train(recipe)
    assert small.metrics(copy) == small.metrics(run)
    assert small.same_weights(copy / "model", run / "model")


def test_rows_without_dense_truth_are_refused_by_source(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "2 + 2?"}], "solution": "4"}\n')
    data = {"warm": {"path": str(rows)}}
    with pytest.raises(ValueError, match=r"perceive: the sources \['warm'\] hold no row with `targets`"):
        train(small.recipe(tmp_path / "run", stages=[PRETASK], data=data, eval={"data": []}))


def test_features_go_to_their_medium_and_grid() -> None:
    features = {"image": torch.arange(2 * 4 * 1.0).view(2, 4, 1), "video": torch.zeros(6, 4, 1)}
    parts = by_medium(features, ["image", "video", "image", "video"])
    assert [len(p) for p in parts] == [1, 3, 1, 3]
    assert parts[2].flatten().tolist() == [4.0, 5.0, 6.0, 7.0]
    ((still, at),) = grids(parts[0], "image", None, None)
    assert still.shape == (1, 2, 2, 1) and at.tolist() == [0.0]
    times = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.0])  # two frames share the features of one moment
    ((film, at),) = grids(parts[1], "video", times, None)
    assert film.shape == (3, 2, 2, 1) and at.tolist() == [0.25, 1.25, 2.0]
    config = SimpleNamespace(audio_tokens=[3, 2], audio_moments=[0.5, 1.5, 2.5, 0.75, 2.25])
    sound = grids(torch.arange(5.0).view(1, 5, 1), "audio", None, config)
    assert [part.flatten().tolist() for part, _ in sound] == [[0.0, 1.0, 2.0], [3.0, 4.0]]
    assert [at.tolist() for _, at in sound] == [[0.5, 1.5, 2.5], [0.75, 2.25]]
    assert all(part.shape[1:] == (1, 1, 1) for part, _ in sound)


def test_only_rows_with_the_wanted_targets_are_drawn(tmp_path: Path) -> None:
    """A row without them would make a batch in which nothing is asked."""
    made = small.recipe(tmp_path / "run", stages=[PRETASK], model=_model(64), eval={"data": []})
    context = prepare(made, tmp_path / "run", None)
    stage = PretaskStage.model_validate(PRETASK | {"targets": ["image/colour"]})
    rows = context.sources["warm"]
    told = [row for row in rows if row.columns.get("targets")]
    shape = {**told[0].columns, "targets": [t for t in told[0].columns["targets"] if "shape" in t["name"]]}
    context.sources["warm"] = [replace(told[0], columns=shape), *rows[1:]]
    method = Pretask(context, stage)
    assert method.loader.epoch_rows == len(told) - 1
    assert {t.name for targets in method._targets.values() for t in targets} == {"image/colour"}
    with pytest.raises(ValueError, match=r"perceive: targets: no row has \['image/color'\]; there are"):
        Pretask(context, stage.model_copy(update={"targets": ["image/color"]}))


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    """Pictures of one label and of all: the mean is over labels, however the rows are split."""
    made = small.recipe(tmp_path / "run", stages=[PRETASK], model=_model(64), eval={"data": []})
    results = []
    for size, steps in ((4, 1), (1, 4)):
        context = prepare(made, tmp_path / "run", None)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        stage = PretaskStage.model_validate(PRETASK | sizes)
        for row in context.sources["warm"][::2]:
            for target in row.columns.get("targets", ()):
                target["labels"] = [target["labels"][0], *[-100] * (len(target["labels"]) - 1)]
        batch = Pretask(context, stage).collect(0.0, 1)
        trainer = trainer_of(Loaded(context.model, context.processor, context.family))
        assert batch.learn is not None
        results.append(batch.learn(trainer, 0.0))
    for name in ("loss", "grad_norm"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-4)


def _initial(run: Path) -> dict[str, torch.Tensor]:
    """The weights before any training, assembled again from the same recipe."""
    recipe = load_recipe(str(run / "recipe.yaml"), [])
    model = prepare(recipe, run, None).model
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
