"""`rollout.staleness: 1`: the next completions are written while these are trained on; what is stale is weighed, a
checkpoint holds what is on its way, and neither a dead server nor an error beside the run goes unnoticed.

The server is `fake_vllm.Holder`, which samples from the weights it was given; vLLM itself: tests/train/test_vllm.py.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError

from mmreason.model.save import copy_weights
from mmreason.objective import correct, token_logprobs
from mmreason.recipe import RecipeError, dump_recipe, load_recipe
from mmreason.schema import Recipe, RolloutConfig
from mmreason.train import loop, step
from mmreason.train.metrics import Metrics
from mmreason.train.run import train
from mmreason.types import TrainingSample
from tests.rollout.fake_vllm import Holder
from tests.rollout.vllm_prompts import loaded, tiny_served
from tests.train import small
from tests.train.pictures import break_picture, write_pictures
from tests.train.served import assert_same, served_recipe, told

COMPLETE = "/v1/chat/completions"
TWICE = {"beta": 0.0, "max_steps": 8, "save_steps": 3}  # each rollout is used twice
ONCE = {"num_iterations": 1, "beta": 0.0, "max_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    small.without_probe(monkeypatch)
    holder = Holder(loaded(folder))
    yield holder
    holder.close()


Make = Callable[..., Recipe]


@pytest.fixture
def recipe(server: Holder, rows: Path, folder: Path, tmp_path: Path) -> Make:
    def make(name: str, stage: dict[str, Any]) -> Recipe:
        return served_recipe(tmp_path / name, rows, folder, server.url, stage, staleness=1)

    return make


def questions(server: Holder) -> int:
    return sum(path == COMPLETE for path, _ in server.asked)


def test_the_next_rollout_is_written_while_this_one_is_trained(
    server: Holder, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every step but the last waits, before it trains, for the next rollout's questions to arrive."""
    plain, seen = step.train_step, []

    def waiting(*args: Any) -> Any:
        seen.append(0)
        until = time.monotonic() + 20.0
        while len(seen) < 4 and questions(server) < 3 * (len(seen) + 1):
            assert time.monotonic() < until, "the next rollout is asked for only once this one is trained"
            time.sleep(0.01)
        return plain(*args)

    monkeypatch.setattr(loop, "train_step", waiting)
    train(recipe("run", ONCE))
    lines = told(tmp_path / "run")
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert [line["rollout/staleness_max"] for line in lines] == [0, 1, 1, 1]
    assert [line["rollout/version"] for line in lines] == [1, 1, 2, 3]
    assert questions(server) == 4 * 3  # none twice, and none for a fifth step
    apart = [line["sampling/sampling_logp_difference/max"] for line in lines]
    assert apart[0] < 1e-4 and min(apart[1:]) > 1e-2


def test_without_staleness_every_step_is_on_policy(
    server: Holder, recipe: Make, rows: Path, folder: Path, tmp_path: Path
):
    """The control, and the default."""
    train(served_recipe(tmp_path / "run", rows, folder, server.url, ONCE))
    lines = told(tmp_path / "run")
    assert [line["rollout/staleness"] for line in lines] == [0, 0, 0, 0]
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines) < 1e-4


def test_a_rollout_that_is_used_twice_grows_older(server: Holder, recipe: Make, tmp_path: Path):
    train(recipe("run", {"max_steps": 6}))
    lines = told(tmp_path / "run")
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 2, 3, 2, 3]
    assert [line["rollout/version"] for line in lines] == [1, 1, 1, 1, 3, 3]


# --- correction


def gradients_apart(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Of the second step, whose rows are stale: the largest |rho - 1|, and how far its gradient is from that of
    -sum(min(rho, 2) x advantage x log-probability) / tokens, taken by the plain forward row by row (relative).
    """
    found: list[tuple[float, float]] = []
    plain, update, model = step.train_step, step.update, loaded(folder).model
    given: list[float] = []

    def watched(trainer: Any, batch: Sequence[TrainingSample], objective: Any, progress: float) -> Any:
        copy_weights(trainer.model, model)
        model.zero_grad()
        total = sum(row.count for row in batch)
        given.clear()
        for row in batch:
            logprobs, known = scored(model, row, objective)
            rho = (logprobs.detach() - known).exp()
            given.append(float((rho - 1).abs().max()))
            (-(rho.clamp(max=2.0) * row.rl[-len(known) :] * logprobs).sum() / total).backward()
        return plain(trainer, batch, objective, progress)

    def measured(trainer: Any, progress: float) -> Any:
        pairs = [
            (p.grad, q.grad) for p, q in zip(model.parameters(), trainer.model.parameters(), strict=True)
        ]
        known = [(p, q) for p, q in pairs if p is not None]
        apart = sum(float((q - p).square().sum()) for p, q in known)
        size = sum(float(p.square().sum()) for p, _ in known)
        found.append((max(given), (apart / size) ** 0.5))
        return update(trainer, progress)

    monkeypatch.setattr(loop, "train_step", watched)
    monkeypatch.setattr(step, "update", measured)
    train(recipe)
    first, second = found
    assert max(first) < 1e-3
    return second


def scored(model: Any, row: TrainingSample, objective: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The trainer's log-probabilities of a row's completion, and those it was sampled with."""
    assert row.sampling_logprobs is not None
    count = int(row.rendered.sampled.sum())
    inputs = {"input_ids": row.rendered.ids[None], "mm_token_type_ids": row.rendered.token_types[None]}
    logits = model.train()(**inputs, **row.rendered.media).logits[:, -count - 1 : -1]
    known = token_logprobs(logits, row.rendered.ids[None, -count:], objective.banned, objective.temperature)
    return known[0][0], row.sampling_logprobs[-count:]


FAR = {**ONCE, "max_steps": 2, "learning_rate": 2e-2}


def test_what_is_stale_is_weighed(
    server: Holder, recipe: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    furthest, error = gradients_apart(recipe("run", FAR), folder, monkeypatch)
    assert furthest > 0.1 and error < 1e-3


def test_without_the_weights_the_step_is_another(
    server: Holder, recipe: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The mutant of the test above."""
    monkeypatch.setattr(step, "correct", lambda *given: (None, correct(*given)[1]))
    furthest, error = gradients_apart(recipe("run", FAR), folder, monkeypatch)
    assert furthest > 0.1 and error > 0.05


# --- going on


def stopped(recipe: Recipe, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the metrics of step `at` are to be written."""
    write = Metrics.write

    def failing(self: Metrics, number: int, *given: Any) -> Any:
        if number == at:
            raise KeyboardInterrupt
        return write(self, number, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Metrics, "write", failing)
        train(recipe)


def seeds(server: Holder) -> list[int]:
    """Of all that was asked so far, which is then forgotten: each question has its own."""
    asked = sorted(body["seed"] for path, body in server.asked if path == COMPLETE)
    server.asked.clear()
    return asked


@pytest.mark.parametrize("at", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_stopped_and_resumed(
    server: Holder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    """From checkpoint 3, between the two uses of the second rollout, with the third on its way."""
    rows = write_pictures(tmp_path / "rows")
    break_picture(rows.with_name("4.png"))

    def recipe(name: str, stage: dict[str, Any]) -> Recipe:
        return served_recipe(tmp_path / name, rows, folder, server.url, stage, staleness=1)

    train(recipe("whole", TWICE))
    whole = seeds(server)
    lines = told(tmp_path / "whole")
    assert [line["rollout/staleness_max"] for line in lines] == [0, 1, 2, 3, 2, 3, 2, 3]
    fresh = [line["rollout/staleness_max"] - line["rollout/staleness"] for line in lines]
    assert max(fresh) > 0  # a row that cannot be read is made up for under the weights of the moment
    stopped(recipe("run", TWICE), at, monkeypatch)
    before = seeds(server)
    train(recipe("run", TWICE))
    assert_same(tmp_path / "whole", tmp_path / "run")
    again = sorted(before + seeds(server))
    if at == 4:  # what was on its way is in the checkpoint: nothing is asked a second time
        assert again == whole
    else:  # at step 5 the third was taken and the fourth asked for, of which the checkpoint knows nothing
        assert set(again) == set(whole) and len(again) > len(whole)


def test_a_run_goes_on_over_the_servers_death(server: Holder, recipe: Make, tmp_path: Path):
    """It dies while it writes the third rollout beside the training of the second, and comes back without weights."""
    train(recipe("whole", ONCE))
    whole = seeds(server)

    def dying(body: Any) -> Any:
        if questions(server) == 8:
            server.dead = True
            threading.Timer(1.0, revived).start()
        return server.complete(body)

    def revived() -> None:
        server.replaced()
        server.dead = False

    server.answers[COMPLETE] = dying
    train(recipe("run", ONCE))
    assert_same(tmp_path / "whole", tmp_path / "run")
    lines = small.metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert sum(line["rollout/restarts"] for line in lines) == 1
    assert lines[2]["rollout/retries"] > 0 and lines[2]["rollout/version"] == 2
    assert set(seeds(server)) == set(whole)


def test_what_goes_wrong_beside_the_run_stops_it_by_name(server: Holder, recipe: Make, tmp_path: Path):
    def refusing(body: Any) -> Any:
        return (400, {"error": {"message": "no"}}) if questions(server) > 3 else server.complete(body)

    server.answers[COMPLETE] = refusing
    with pytest.raises(
        ValueError, match=r"rollout.engine: vllm: POST .*completions: the server refuses \(400\): no"
    ):
        train(recipe("run", ONCE))
    assert [line["step"] for line in told(tmp_path / "run")] == [1]
    assert not list((tmp_path / "run" / "rollout_weights").iterdir())


def test_a_run_that_ends_does_not_wait_for_what_is_on_its_way(
    server: Holder, recipe: Make, monkeypatch: pytest.MonkeyPatch
):
    silent = threading.Event()

    def slow(body: Any) -> Any:
        if questions(server) > 3:
            silent.wait(60.0)
        return server.complete(body)

    server.answers[COMPLETE] = slow
    began = time.monotonic()
    stopped(recipe("run", ONCE), 1, monkeypatch)
    silent.set()
    assert time.monotonic() - began < 30.0


ALONE = """
import sys
from pathlib import Path
from mmreason.render import Renderer
from mmreason.rollout.sampling import SamplingParams
from tests.rollout.vllm_prompts import engine, loaded, prompt

url, folder, weights = sys.argv[1:]
model = loaded(Path(folder))
renderer = Renderer(model.processor)
rollout = engine(url, Path(weights), model.model, max_wait=60.0)
rollout.publish(model.model, 1)
rollout.start([prompt(renderer, 0)], 2, SamplingParams(4), renderer)
print("asked", flush=True)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_process_ends_while_the_server_is_silent(server: Holder, folder: Path, tmp_path: Path):
    silent = threading.Event()
    server.answers[COMPLETE] = lambda body: silent.wait(120.0)
    command = [sys.executable, "-c", ALONE, server.url, str(folder), str(tmp_path / "weights")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60.0, cwd=Path(__file__).parents[2]
    )
    silent.set()
    assert (done.returncode, done.stdout.strip()) == (3, "asked"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_ask_ahead_and_one_goes_on(server: Holder, recipe: Make, tmp_path: Path):
    """Killed with the third rollout on its way, of which each rank's checkpoint holds a share."""
    two = recipe("run", {**TWICE, "per_device_train_batch_size": 16})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(two))
    command = [sys.executable, "-m", "mmreason.cli", "launch", str(path), "--nproc", "2"]
    ranks = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 400.0
    while not (tmp_path / "run" / "checkpoint-3").exists():
        assert ranks.poll() is None and time.monotonic() < until, ranks.communicate()[1][-3000:]
        time.sleep(0.02)
    torchrun = psutil.Process(ranks.pid)
    for process in [torchrun, *torchrun.children(recursive=True)]:  # ranks have sessions of their own
        process.kill()
    ranks.wait()
    train(recipe("run", {**TWICE, "per_device_train_batch_size": 32}))
    lines = small.metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(line["rows"] == 32 and line["groups"] == 4 for line in lines)
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 2, 3, 2, 3, 2, 3]


# --- what cannot be


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "local"}, "engine local is this very process; take engine: vllm with mode: server"),
        ({"importance_sampling_mode": "none"}, "mode none would leave as it is; take token_truncate"),
        ({"staleness": 2}, "Input should be 0 or 1"),
    ],
    ids=str,
)
def test_wrong_keys(keys: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        RolloutConfig.model_validate({"engine": "vllm", "staleness": 1} | keys)


def test_the_key_of_others_is_named(tmp_path: Path):
    path = Path(__file__).parents[2] / "recipes" / "debug_vllm.yaml"
    with pytest.raises(RecipeError, match="rollout.async: .*staleness: 1"):
        load_recipe(path, ["rollout.async=true"])
