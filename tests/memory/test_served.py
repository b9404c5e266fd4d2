"""Where vLLM writes the completions, their keys and values are not this process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmreason.memory import LiveBytes, Memory
from mmreason.rollout.vllm_inside import KV_BYTES
from mmreason.rollout.vllm_server import write_weights
from mmreason.schema import Recipe
from mmreason.validate import validate
from tests.rollout.vllm_prompts import loaded, tiny_served
from tests.train.pictures import write_pictures
from tests.train.served import served_recipe


def predicted(folder: Path, out: Path, **model: Any) -> tuple[Memory, Memory, Memory]:
    """Of the same run, with the local engine, with a server's, and with vLLM in the run's process."""
    rows = write_pictures(out / "rows")
    tree = served_recipe(out / "run", rows, folder, "http://127.0.0.1:9").model_dump()
    tree["model"] |= model
    found = []
    for engine, mode in (("local", "server"), ("vllm", "server"), ("vllm", "colocate")):
        tree["rollout"] |= {"engine": engine, "mode": mode}
        report = validate(Recipe.model_validate(tree))
        assert [
            p for p in report.problems if not p.startswith("rollout.mode: mode colocate needs vLLM")
        ] == []
        found.append(report.memory["grpo"])
    return found[0], found[1], found[2]


@pytest.mark.slow
def test_keys_and_values_are_the_servers(tmp_path: Path):
    local, served, inside = predicted(tiny_served(tmp_path / "model"), tmp_path)
    assert local.kv_cache > 0 and served.kv_cache == 0
    held = served.weights + served.optimizer + served.reference + served.features + served.rows
    assert served.moments["rollout"] == held < local.moments["rollout"]
    alike = {"training", "check", "start"}
    assert {m: local.moments[m] for m in alike} == {m: served.moments[m] for m in alike}
    more = served.weights + KV_BYTES  # of vLLM, all the time
    for moment in ("training", "check", "rollout"):
        assert inside.moments[moment] == served.moments[moment] + more


@pytest.mark.slow
def test_adapters_are_merged_into_a_copy_for_the_server(tmp_path: Path):
    folder = tiny_served(tmp_path / "model")
    _, served, _ = predicted(folder, tmp_path, use_peft=True, lora_r=4)
    beside = served.optimizer + served.reference + served.features + served.rows
    model = loaded(folder, use_peft=True, lora_r=4).model
    with LiveBytes() as live:
        live.hold(model.parameters())
        write_weights(model, tmp_path / "weights")
    assert served.moments["rollout"] - beside == pytest.approx(live.peak, rel=0.2)
