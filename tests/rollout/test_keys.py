"""The recipe's keys reach the engine, in training and in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import GRPOStage
from mmreason.train import evaluation, grpo
from mmreason.train.run import train
from tests.train import small


class _Seen(Exception):
    pass


@pytest.mark.parametrize("where", ["grpo", "eval"])
def test_the_engine_is_asked_as_the_recipe_says(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SamplingParams] = []

    def engine(*_: Any) -> Any:
        def complete(*arguments: Any) -> Any:
            asked.extend(given for given in arguments if isinstance(given, SamplingParams))
            raise _Seen

        return complete

    monkeypatch.setattr(grpo if where == "grpo" else evaluation, "engine", engine)
    stage = small.GRPO | {"stop_strings": ["</answer>"], "top_k": 7}
    recipe = small.recipe(
        tmp_path,
        stages=[stage],
        eval={"data": ["held_out"], "batch_size": 3, "stop_strings": ["."], "before": where == "eval"},
        rollout={"max_rows": 5, "kv_cache_memory_bytes": 999},
    )
    with pytest.raises(_Seen):
        train(recipe)
    (params,) = asked
    wanted = (("</answer>",), 5, 999) if where == "grpo" else ((".",), 3, 999)
    assert (params.stop, params.max_rows, params.kv_bytes) == wanted
    assert params.greedy is (where == "eval")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValidationError, match="stop_strings"):
        GRPOStage(type="grpo", name="g", data=["x"], stop_strings=[""])
