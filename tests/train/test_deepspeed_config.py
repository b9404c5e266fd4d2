"""What the `deepspeed` key becomes, and what it refuses by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmreason.schema import DEEPSPEED_PRESETS, Recipe
from mmreason.train.deepspeed_config import DeepSpeedConfig, deepspeed_problems, read
from mmreason.validate.settings import settings_problems

SFT = {"type": "sft", "name": "warm", "data": ["rows"]}


def recipe(deepspeed: str, model: dict[str, Any] | None = None, **keys: Any) -> Recipe:
    tree: dict[str, Any] = {
        "output_dir": "unused",
        "model": {"model_name_or_path": "unused", **(model or {})},
        "data": {"rows": {"path": "unused.jsonl"}},
        "stages": [SFT],
        "deepspeed": deepspeed,
    }
    return Recipe.model_validate(tree | keys)


def settings(deepspeed: str, **keys: Any) -> dict[str, Any]:
    config = read(recipe(deepspeed, **keys))
    assert isinstance(config, DeepSpeedConfig)
    return config.for_stage(0.5, cuda=False)


@pytest.mark.parametrize("name", DEEPSPEED_PRESETS)
def test_presets(name: str) -> None:
    made = settings(name)
    zero = made["zero_optimization"]
    assert zero["stage"] == int(name[4])
    assert ("offload_optimizer" in zero) == name.endswith("_offload")
    assert ("offload_param" in zero) == (name == "zero3_offload")
    assert made["gradient_clipping"] == (0.5 if zero["stage"] else 0.0)
    assert not made["bf16"]["enabled"] and not made["torch_autocast"]["enabled"]


def test_bfloat16_is_autocast_or_weights_with_float32_beside_them() -> None:
    made = settings("zero2", bf16=True)
    assert made["torch_autocast"]["enabled"] and not made["bf16"]["enabled"]
    made = settings("zero2", model={"torch_dtype": "bfloat16"}, bf16=True)
    assert made["bf16"]["enabled"] and not made["torch_autocast"]["enabled"]


def test_a_file_of_settings_with_auto_in_it(tmp_path: Path) -> None:
    """As Hugging Face's examples have them."""
    path = tmp_path / "mine.json"
    zero = {"stage": 3, "stage3_prefetch_bucket_size": "auto", "stage3_max_live_parameters": 7}
    path.write_text(
        json.dumps(
            {
                "zero_optimization": zero,
                "bf16": {"enabled": "auto"},
                "fp16": {"enabled": False},
                "gradient_clipping": "auto",
                "train_batch_size": "auto",
                "wall_clock_breakdown": True,
            }
        )
    )
    made = settings(str(path))
    assert made["zero_optimization"] == {"stage": 3, "stage3_max_live_parameters": 7, "overlap_comm": False}
    assert made["wall_clock_breakdown"] and made["gradient_clipping"] == 0.5 and "fp16" not in made


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "no such file"),
        ("{", "it is no JSON"),
        ("[]", "it holds a list"),
        ('{"optimizer": {"type": "AdamW"}}', "optimizer is said in the recipe, by stages.NAME.optimizer"),
        ('{"gradient_clipping": 1.0}', "by stages.NAME.max_grad_norm"),
        ('{"fp16": {"enabled": true}}', "float16 is not supported"),
        ('{"zero_optimization": {"stage": 4}}', "stage is 0, 1, 2 or 3"),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}',
            "nvme has not been tried",
        ),
    ],
)
def test_a_file_that_cannot_work_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    (problem,) = deepspeed_problems(recipe(str(path)))
    assert str(path) in problem and said in problem
    with pytest.raises(ValueError, match="deepspeed"):
        read(recipe(str(path)))


@pytest.mark.parametrize(
    "deepspeed, keys, said",
    [
        ("zero2", {"backend": "ddp"}, "backend: ddp and a deepspeed key exclude each other"),
        (
            "zero2",
            {"stages": [{**SFT, "type": "pretask"}]},
            "stages.warm: pretask does not run under DeepSpeed",
        ),
        ("zero3", {"shared_prefix": "require"}, "shared_prefix: require cannot be met under ZeRO-3"),
        ("zero2", {"model": {"torch_dtype": "float16"}}, "take bfloat16 or float32"),
        ("zero0", {"model": {"torch_dtype": "bfloat16"}}, "zero0 keeps no float32 weights"),
        ("zero2", {"rollout": {"gather": "modules"}}, "is of deepspeed: zero3 .* got deepspeed: zero2"),
        (
            "zero3",
            {"rollout": {"gather": "whole", "engine": "vllm"}},
            "rollout.gather: whole is of .* rollout.engine: vllm; remove the key",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_validate(
    deepspeed: str, keys: dict[str, Any], said: str
) -> None:
    problems = settings_problems(recipe(deepspeed, **keys))
    assert [problem for problem in problems if re.search(said, problem)]


def test_gathering_is_of_zero3() -> None:
    keys = {"rollout": {"gather": "modules"}}
    assert deepspeed_problems(recipe("zero3", **keys)) == []
    (problem,) = deepspeed_problems(recipe("zero3", **keys).model_copy(update={"deepspeed": None}))
    assert "rollout.gather: modules is of deepspeed: zero3" in problem


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'deepspeed>=0.19'" in deepspeed_problems(recipe("zero1"))[0]
