"""Which engine is taken for which model, and what is said about it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from mmreason.model.load import load_model
from mmreason.model.shared_fit import unshareable
from mmreason.recipe import build_recipe
from mmreason.rollout import engine as engines
from mmreason.rollout import forked, generate
from mmreason.rollout.engine import engine
from mmreason.schema import ModelConfig
from tests.train import small

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def text_model(model_type: str, **more: Any) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES, **more))


def test_the_forked_one_where_it_fits(assembled_folder: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0).model
    assert engine(model, "auto") is forked.generate
    assert engine(model, "require") is forked.generate
    assert engine(model, "off") is generate.generate
    assert engine(text_model("qwen2"), "require") is forked.generate


def test_the_plain_one_elsewhere_and_its_reason_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_said", set())
    capped = text_model("gemma2")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert engine(capped, "auto") is generate.generate
    assert [r.getMessage() for r in caplog.records if r.name == engines.__name__] == [
        "rollouts prefill every row by itself (attention_softcapping): Gemma2Model caps its attention's logits"
    ]
    with pytest.raises(ValueError, match="require cannot be met in rollouts: Gemma2Model caps.*auto"):
        engine(capped, "require")


def test_strange_layers_are_named() -> None:
    reason = unshareable(text_model("lfm2", layer_types=["conv", "full_attention"]))
    assert reason is not None and reason.name == "layers" and "conv" in reason.why


@pytest.mark.parametrize("written, read", [("off", "off"), (False, "off"), ("require", "require")])
def test_a_bare_off_in_yaml_is_off(written: Any, read: str, tmp_path: Path) -> None:
    tree = small.recipe(tmp_path).model_dump(mode="json") | {"shared_prefix": written}
    assert build_recipe(tree).shared_prefix == read
    assert build_recipe(tree, ["shared_prefix=off"]).shared_prefix == "off"
    with pytest.raises(ValueError, match="shared_prefix"):
        build_recipe(tree, ["shared_prefix=on"])
