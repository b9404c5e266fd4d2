"""The base model in the repository: small, safe to load, as its card says, and able to answer in form."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmreason import evaluate
from mmreason.data.worlds import make_world
from mmreason.model import load_model
from mmreason.schema import ModelConfig

FOLDER = Path(__file__).parents[2] / "models" / "mmreason-tiny"


def test_it_holds_weights_in_safetensors_and_a_card() -> None:
    kinds = {file.suffix for file in FOLDER.iterdir()}
    assert kinds <= {".safetensors", ".json", ".py", ".md", ".jinja"}
    assert "recipes/base.yaml" in (FOLDER / "README.md").read_text()
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 16 * 2**20


def test_the_code_it_carries_is_the_encoders_own() -> None:
    """`save_pretrained` copied it; a change of the architecture has to be copied again, or the folder lies."""
    own = Path(__file__).parents[2] / "encoders" / "mmreason_encoders" / "assembled"
    carried = {file.name: file.read_text() for file in FOLDER.glob("*.py")}
    assert carried == {name: (own / name).read_text() for name in carried} and carried


def test_it_has_one_to_three_million_parameters_and_every_sense() -> None:
    loaded = load_model(ModelConfig(model_name_or_path=str(FOLDER)), texts=lambda: [], seed=0)
    assert 1e6 < sum(p.numel() for p in loaded.model.parameters()) < 3e6
    assert loaded.model.config.vision_config is not None and len(loaded.model.config.audio_configs) == 2


def test_it_answers_held_out_primitives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far above chance (15%): a broken file, processor or template would not be."""
    rows = make_world("image", tmp_path / "w", count=32, seed=990, split="test", kinds=["primitive"])
    seen = evaluate(str(FOLDER), [str(rows)], max_completion_length=120)["overall"]
    assert seen["format"] > 0.9 and seen["accuracy"] > 0.5
