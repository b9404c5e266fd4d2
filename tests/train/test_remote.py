"""What of a recipe a vLLM server cannot do, said before anything is asked of it; and what the step learns of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mmreason.data.loader import collate
from mmreason.data.media import MediaLimits
from mmreason.data.quarantine import Quarantine
from mmreason.model.load import load_model
from mmreason.objective import Correction, grpo_samples
from mmreason.render import Renderer
from mmreason.schema import ModelConfig, Recipe, RolloutConfig
from mmreason.train.distributed import Backend
from mmreason.train.feed import Feed
from mmreason.train.folder import differences
from mmreason.train.prepare import prepare
from mmreason.train.remote import correction_of, remote_engine, remote_problems, unsent_rows
from mmreason.types import MediumRef, Message, Part, Sample
from mmreason.validate import validate
from tests.rewards.build import group, sample, trajectory
from tests.train import small
from tests.train.pictures import write_pictures

VLLM = {"engine": "vllm", "base_url": "http://127.0.0.1:9", "max_wait": 0.0}


def recipe(out: Path, stage: dict[str, Any] | None = None, **keys: Any) -> Recipe:
    return small.recipe(out, stages=[{**small.GRPO, **(stage or {})}], **{"rollout": VLLM, **keys})


def test_the_local_engine_has_no_problem_and_no_correction(tmp_path: Path):
    local = small.recipe(tmp_path)
    assert local.rollout.engine == "local"
    assert remote_problems(local) == [] and correction_of(local) is None
    assert remote_engine(local, tmp_path, None, None, None, None) is None  # type: ignore[arg-type]


def test_assembled_models_and_narrowed_sampling_are_refused_by_name(tmp_path: Path):
    problems = remote_problems(recipe(tmp_path, {"top_p": 0.9, "top_k": 5, "min_p": 0.1}))
    assert [problem.split(":")[0] for problem in problems] == [
        "rollout.engine",
        "stages.grpo.top_p",
        "stages.grpo.top_k",
        "stages.grpo.min_p",
    ]
    assert "vLLM has no class for an assembled model" in problems[0]
    assert "got 0.9; allowed with rollout.engine: vllm is 1" in problems[1]
    native = recipe(tmp_path, model={"model_name_or_path": "somewhere"})
    assert remote_problems(native) == []


def test_films_are_refused_before_anything_is_loaded(tmp_path: Path):
    turn = Message("user", (Part("video", medium=0), Part("text", text="?")))
    film = Sample("prompts:3", "prompts", (turn,), (MediumRef("video", "3.mp4"),))
    (problem,) = unsent_rows(recipe(tmp_path), {"prompts": [sample("1"), film, film], "warm": [film]})
    assert problem.startswith("stages.grpo.data: 2 rows of prompts (the first is prompts:3) cannot be sent")
    assert "places its frames and the text behind them elsewhere than transformers does" in problem
    assert "use rollout.engine: local" in problem
    assert unsent_rows(small.recipe(tmp_path), {"prompts": [film]}) == []
    assert unsent_rows(recipe(tmp_path), {"prompts": [sample("1")]}) == []


FILMS = r"2 rows of prompts .* cannot be sent with rollout.engine: vllm: got a video"


def of_films(folder: Path, out: Path) -> Recipe:
    source = {"world": "video", "count": 2, "seed": 2, "rationale": False}
    model = {"model_name_or_path": str(folder)}
    return recipe(out, model=model, data={"prompts": source}, eval={})


def test_a_run_of_films_ends_before_it_begins(native_folder: Callable[[str], Path], tmp_path: Path):
    with pytest.raises(ValueError, match=FILMS):
        prepare(of_films(native_folder("qwen2_5_vl"), tmp_path / "run"), tmp_path / "run", None)


@pytest.mark.slow
def test_validate_says_so(native_folder: Callable[[str], Path], tmp_path: Path):
    problems = validate(of_films(native_folder("qwen2_5_vl"), tmp_path / "run")).problems
    assert [re.search(FILMS, problem) is not None for problem in problems] == [True]


def test_a_loaded_assembled_model_is_refused_and_nobody_asked(assembled_folder: Path, tmp_path: Path):
    loaded = load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)
    backend = Backend(torch.device("cpu"))
    with pytest.raises(ValueError, match="rollout.engine: vLLM has no class for an assembled model"):
        remote_engine(recipe(tmp_path), tmp_path, loaded.model, loaded.processor, loaded.family, backend)


def test_a_native_model_needs_its_server_before_training(
    native_folder: Callable[[str], Path], tmp_path: Path
):
    folder = native_folder("qwen2_5_vl")
    loaded = load_model(ModelConfig(model_name_or_path=str(folder)), texts=lambda: [], seed=0)
    backend = Backend(torch.device("cpu"))
    with pytest.raises(ValueError, match="127.0.0.1:9/version: .*refused.*mmreason serve MODEL"):
        remote_engine(recipe(tmp_path), tmp_path, loaded.model, loaded.processor, loaded.family, backend)
    only_sft = small.recipe(tmp_path, stages=[{**small.SFT, "replay": {}}], rollout=VLLM)
    assert remote_engine(only_sft, tmp_path, loaded.model, loaded.processor, loaded.family, backend) is None


def test_the_recipes_correction_reaches_the_step(tmp_path: Path):
    assert correction_of(recipe(tmp_path)) == Correction("token_truncate", 2.0, None)
    keys = {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_max": 3.0}
    assert correction_of(recipe(tmp_path, rollout=VLLM | keys)) == Correction("sequence_mask", 3.0, None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "sglang"}, "'local' or 'vllm'"),
        ({"mode": "ray"}, "'server' or 'colocate'"),
        ({"mode": "colocate"}, "mode=colocate is one of engine vllm; take engine: vllm, or remove it"),
        (
            {"mode": "colocate", "engine": "vllm", "staleness": 1},
            "mode colocate is this very process; take .* mode: server",
        ),
        ({"base_url": "127.0.0.1:8000"}, "pattern"),
        ({"importance_sampling_mode": "clip"}, "token_truncate"),
        (
            {"importance_sampling_clip_min": 3.0},
            "clip_min=3 is above importance_sampling_clip_max=2; exchange",
        ),
    ],
)
def test_wrong_keys(keys: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        RolloutConfig(**keys)


def test_another_address_is_the_same_run(tmp_path: Path):
    one = recipe(tmp_path).model_dump()
    other = recipe(tmp_path, rollout={**VLLM, "base_url": "http://10.0.0.1:80", "timeout": 1.0}).model_dump()
    assert differences(one, other) == []
    other["rollout"]["importance_sampling_mode"] = "token_mask"
    assert differences(one, other) != []


def test_what_the_engine_sampled_with_stands_beside_the_tokens():
    made = group(sample("1"), [replace(trajectory(length=3), logprobs=torch.tensor([-1.0, -2.0, -3.0]))])
    how: dict[str, Any] = {"loss_type": "dapo", "beta": 0.0, "max_completion_length": 4, "group_id": 0}
    (row,) = grpo_samples(made, [1.0], mask_truncated=False, keep_sampling=True, **how)
    assert row.sampling_logprobs is not None and row.sampling_logprobs.tolist() == [0, 0, -1, -2, -3]
    (bare,) = grpo_samples(made, [1.0], mask_truncated=False, **how)
    assert bare.sampling_logprobs is None and collate([bare], 0).sampling_logprobs is None
    both = collate([row, bare], 0).sampling_logprobs
    assert both is not None and both.tolist() == [[0, 0, -1, -2, -3], [0, 0, 0, 0, 0]]


def test_a_medium_that_is_gone_by_now_goes_to_quarantine(
    native_folder: Callable[[str], Path], tmp_path: Path
):
    folder = native_folder("qwen2_5_vl")
    loaded = load_model(ModelConfig(model_name_or_path=str(folder)), texts=lambda: [], seed=0)
    root = write_pictures(tmp_path / "rows").parent
    quarantine = Quarantine(tmp_path / "q.jsonl", totals={"rows": 9}, max_fraction=1.0, writes=True)
    feed = Feed(Renderer(loaded.processor), MediaLimits(), quarantine, stop=False)
    parts = (Part("image", medium=0), Part("text", text="?"))
    row = Sample("rows:0", "rows", (Message("user", parts),), (MediumRef("image", "0.png", str(root)),))
    media = feed.media(row)
    assert media is not None and media[0].image is not None
    (root / "0.png").unlink()
    feed._media.clear()
    assert feed.media(row) is None
    assert "rows:0" in (tmp_path / "q.jsonl").read_text()
