"""The capability table: what it says of a model is what the model is made of, and holds when the model runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmreason.cli import app
from mmreason.model.load import load_model
from mmreason.model.shared_fit import unshareable, untrainable
from mmreason.train.capability import FAMILIES, LLMS, capabilities
from tests.model.test_shared_forward import assert_equal, groups_of
from tests.tiny import QWEN3, TEXTS, tiny_model_config

FIT = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text")
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SMALL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "qwen3_moe": MOE,
    "gemma3_text": {"sliding_window": 8},
}


def test_the_command_prints_every_family(tmp_path: Path) -> None:
    out = tmp_path / "models.json"
    shown = CliRunner().invoke(app, ["methods", "--models", "--json", str(out)])
    assert shown.exit_code == 0, shown.output
    lines = {line["name"]: line for line in json.loads(out.read_text())}
    assert list(lines) == [*FAMILIES, *LLMS]
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_audio", "qwen2_5_omni_thinker", *FIT):
        assert lines[name]["rollout"] is lines[name]["training"] is None
    assert [n for n in lines if lines[n]["positions"] == "M-RoPE"][:3] == [
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
    ]
    for name, reason in {
        "gemma3": "both_ways: ",
        "paligemma": "both_ways: ",
        "gemma2": "attention_softcapping: ",
        "gpt_oss": "own_attention: ",
    }.items():
        assert lines[name]["training"].startswith(reason)


def test_what_cannot_be_forked_cannot_be_trained_shared_either() -> None:
    """One check under both: a reason of rollouts is one of training, word for word."""
    for name, reason in {
        "mllama": "cross_attention: ",
        "deepseek_v3": "latent_attention: ",
        "kimi_linear": "latent_attention: ",
        "minimax": "own_cache: ",
        "gemma2": "attention_softcapping: ",
        "gpt_oss": "own_attention: ",
        "lfm2_vl": "own_attention: ",
    }.items():
        (line,) = capabilities([name])
        assert line.rollout == line.training and (line.training or "").startswith(reason)
    (line,) = capabilities(["gemma3"])
    assert line.rollout is None and line.training is not None
    for name in ("qwen3_5", "qwen3_next", "olmo_hybrid"):
        (line,) = capabilities([name])
        assert line.rollout is line.training is None and "linear_attention" in line.layers


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'qwen9_vl' is no model_type of transformers"):
        capabilities(["qwen9_vl"])
    with pytest.raises(ValueError, match="no multimodal or causal language model for 'siglip_vision_model'"):
        capabilities(["siglip_vision_model"])


@pytest.mark.parametrize("llm", FIT)
def test_a_yes_holds_when_the_model_runs(llm: str) -> None:
    config = {**QWEN3, **SMALL.get(llm, {}), "model_type": llm, "initializer_range": 0.1}
    loaded = load_model(tiny_model_config(llm=config), texts=lambda: TEXTS, seed=0)
    loaded.model.train()
    assert untrainable(loaded.model) is None
    assert_equal(loaded, groups_of(loaded, ("i", "")))


@pytest.mark.parametrize(
    ("llm", "extra", "name"),
    [
        ("qwen3_moe", {**MOE, "output_router_logits": True}, "router_loss"),
        ("qwen3", {"attention_dropout": 0.1}, "dropout"),
        ("granite", {"logits_scaling": 8.0}, "after_the_head"),
        ("gpt2", {"n_layer": 1, "n_head": 2, "n_embd": 32, "resid_pdrop": 0.0}, "own_attention"),
    ],
)
def test_what_stands_against_it_has_a_name(llm: str, extra: dict[str, Any], name: str) -> None:
    base = {} if llm == "gpt2" else QWEN3
    config = {**base, **extra, "model_type": llm}
    loaded = load_model(tiny_model_config(llm=config), texts=lambda: TEXTS, seed=0)
    reason = untrainable(loaded.model)
    assert reason is not None and reason.name == name and reason.why


def test_an_adapter_with_dropout_is_not_shared() -> None:
    loaded = load_model(
        tiny_model_config().model_copy(update={"use_peft": True, "lora_dropout": 0.1}),
        texts=lambda: TEXTS,
        seed=0,
    )
    reason = untrainable(loaded.model)
    assert unshareable(loaded.model) is None and reason is not None and reason.name == "dropout"
    assert "lora_dropout" in reason.why
