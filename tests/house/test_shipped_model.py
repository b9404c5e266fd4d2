"""The base models in the repository: small, safe to load, as their cards say, and able to answer in form."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreason import evaluate
from mmreason.data.worlds import make_world
from mmreason.model import load_model
from mmreason.schema import ModelConfig

MODELS = Path(__file__).parents[2] / "models"
EVERY = pytest.mark.parametrize("name", ["mmreason-tiny"])


@EVERY
def test_it_holds_weights_in_safetensors_and_a_card(name: str) -> None:
    folder = MODELS / name
    kinds = {file.suffix for file in folder.iterdir()}
    assert kinds <= {".safetensors", ".json", ".py", ".md", ".jinja"}
    assert "recipes/base.yaml" in (folder / "README.md").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16 * 2**20


@EVERY
def test_the_code_it_carries_is_the_encoders_own(name: str) -> None:
    """`save_pretrained` copied it; a change of the architecture has to be copied again, or the folder lies."""
    own = Path(__file__).parents[2] / "encoders" / "mmreason_encoders" / "assembled"
    carried = {file.name: file.read_text() for file in (MODELS / name).glob("*.py")}
    assert carried == {code: (own / code).read_text() for code in carried} and carried


@EVERY
def test_it_has_one_to_three_million_parameters_and_every_sense(name: str) -> None:
    loaded = load_model(ModelConfig(model_name_or_path=str(MODELS / name)), texts=lambda: [], seed=0)
    assert 1e6 < sum(p.numel() for p in loaded.model.parameters()) < 3e6
    assert loaded.model.config.vision_config is not None and len(loaded.model.config.audio_configs) == 2


@pytest.mark.parametrize("world", ["image", "video", "audio", "av"])
@EVERY
def test_it_answers_held_out_primitives(name: str, world: str, tmp_path: Path) -> None:
    """Far above chance (15 to 36%): a broken file, processor or template would not be."""
    rows = make_world(world, tmp_path / "w", count=32, seed=990, split="test", kinds=["primitive"])
    seen = evaluate(str(MODELS / name), [str(rows)], max_completion_length=150)["overall"]
    assert seen["format"] > 0.9 and seen["accuracy"] > 0.6
