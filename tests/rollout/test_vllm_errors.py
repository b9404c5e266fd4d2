"""What a rollout says of a server that is not there, slow, wrong, or speaks nonsense; and of one that is replaced.

No vLLM can be made to answer wrongly, so the server here is one of our own. What a right server does is tested with
vLLM itself (tests/train/test_vllm.py).
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmreason.render import Renderer
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_client import Refused
from mmreason.rollout.vllm_requests import Prompt, request
from mmreason.types import DecodedMedium, Message, Part
from tests.rollout.fake_vllm import FACTS, Fake
from tests.rollout.vllm_prompts import engine, loaded, prompt, tiny_served

PARAMS = SamplingParams(4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(tiny_served(tmp_path_factory.mktemp("served") / "model"))


@pytest.fixture(scope="module")
def renderer(model: Any) -> Renderer:
    return Renderer(model.processor)


@pytest.fixture
def fake(prompts: list[Prompt]) -> Iterator[Fake]:
    server = Fake()
    server.prompts = {p.sample.messages[-1].parts[-1].text: p.rendered.ids.tolist() for p in prompts}
    yield server
    server.close()


@pytest.fixture(scope="module")
def prompts(renderer: Renderer) -> list[Prompt]:
    return [prompt(renderer, i, text=f"Question {i}?") for i in range(3)]


Ask = Callable[..., Any]


@pytest.fixture
def ask(fake: Fake, model: Any, renderer: Renderer, prompts: list[Prompt], tmp_path: Path) -> Ask:
    """Publish version 3 and ask for two completions of each prompt; returns them, or raises."""

    def once(**keys: Any) -> Any:
        rollout = engine(fake.url, tmp_path / "weights", model.model, **keys)
        rollout.publish(model.model, 3)
        return rollout.complete(prompts, 2, PARAMS, renderer), rollout.end_rollout()

    return once


def test_what_the_server_says_comes_back(ask: Ask):
    """The control of all that follows: nothing is refused."""
    out, told = ask()
    assert [len(group) for group in out] == [2, 2, 2]
    assert out[0][0].ids.tolist() == [40, 41] and out[0][0].finish == "length"
    assert out[0][0].logprobs is not None and out[0][0].logprobs.tolist() == [-1.0, -2.0]
    assert told["rollout/retries"] == 0 and told["rollout/pushes"] == 1 and told["time/generate"] > 0


def test_nobody_listens(model: Any, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"http://127.0.0.1:9/version.*refused.*mmreason serve MODEL.*base_url"
    ):
        engine("http://127.0.0.1:9", tmp_path, model.model).connect()


def test_a_slow_server(fake: Fake, ask: Ask):
    fake.answers["/v1/chat/completions"] = lambda body: time.sleep(1.0)
    with pytest.raises(ValueError, match=r"no answer within 0.2 s; gave up.*rollout.timeout"):
        ask(timeout=0.2)


def changed(fake: Fake, **facts: Any) -> None:
    fake.answers["/collective_rpc"] = lambda body: {"results": [{**FACTS, **fake.stamp, **facts}]}


@pytest.mark.parametrize(
    ("path", "said", "message"),
    [
        ("/version", {"version": "0.11.2"}, r"got vLLM 0.11.2; allowed is 0.26.x.*pip install"),
        ("/version", b"<html>hello</html>", r"/version: got b'<html>hello.*no JSON; is this a vLLM server"),
        ("/version", {"detail": "no"}, r"is this a vLLM server"),
        (
            "/v1/chat/completions",
            (400, {"error": {"message": "prompt too long"}}),
            r"refuses \(400\): prompt too",
        ),
        ("/v1/chat/completions", b"{}", r"row rows:0: the server's answer lacks 'prompt_token_ids'"),
        ("/v1/chat/completions", (503, {"error": {"message": "busy"}}), r"failed \(503\): busy; gave up"),
        (
            "/collective_rpc",
            (404, {"detail": "Not Found"}),
            r"worker extension: start it with `mmreason serve",
        ),
        ("/collective_rpc", {"results": ["None"]}, r"got .* of mmreason_facts; start it with"),
        ("/collective_rpc", (500, b"no method mmreason_facts"), r"failed \(500\): no method mmreason_facts"),
        ("/pause?mode=wait", (404, {}), r"/pause\?mode=wait: the server refuses \(404\)"),
    ],
    ids=str,
)
def test_wrong_answers_are_named(fake: Fake, ask: Ask, path: str, said: Any, message: str):
    fake.answers[path] = said
    with pytest.raises(ValueError, match="rollout.engine: vllm: .*" + message):
        ask()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"num_hidden_layers": 28}, r"serves another model: num_hidden_layers 28 \(the run's: 2\)"),
        ({"num_key_value_heads": 7}, r"serves another model: num_key_value_heads 7 \(the run's: \d+\)"),
        ({"model_type": "qwen3_vl"}, r"serves another model: model_type qwen3_vl \(the run's: qwen2_5_vl\)"),
        (
            {"logprobs_mode": "raw_logprobs"},
            r"--logprobs-mode is raw_logprobs; allowed is processed_logprobs",
        ),
        (
            {"error": "the server sees no *.safetensors in /x"},
            r"no \*.safetensors in /x; set rollout.weights_dir",
        ),
    ],
    ids=str,
)
def test_a_server_that_does_not_fit(fake: Fake, ask: Ask, facts: dict[str, Any], message: str):
    changed(fake, **facts)
    with pytest.raises(ValueError, match=message):
        ask()


def test_a_server_that_an_older_version_started(fake: Fake, ask: Ask):
    old = {name: value for name, value in FACTS.items() if name != "intermediate_size"}
    fake.answers["/collective_rpc"] = {"results": [old | fake.stamp]}
    with pytest.raises(
        ValueError, match="does not tell its intermediate_size: .* older mmreason; start it again"
    ):
        ask()


def bent(fake: Fake, bend: Callable[[Any], Any]) -> None:
    """Let completions be bent by `bend` before they are sent."""
    fake.answers["/v1/chat/completions"] = lambda body: bend(fake.complete(body))


def test_another_tokenizer_or_template(fake: Fake, ask: Ask):
    bent(fake, lambda said: {**said, "prompt_token_ids": [*said["prompt_token_ids"][:-2], 50, 51, 52]})
    with pytest.raises(
        ValueError, match=r"row rows:0: the server's prompt has \d+ tokens.*should be.*template"
    ):
        ask()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"token_ids": [3, 41]}, "sampled the media placeholders"),
        ({"token_ids": [40]}, "a log-probability for each of 1 tokens"),
        ({"token_ids": None}, "the server's answer lacks"),
        ({"token_ids": [], "logprobs": {"content": []}}, "has no tokens"),
        ({"finish_reason": "abort"}, "aborted the request; gave up"),
    ],
    ids=str,
)
def test_wrong_completions(fake: Fake, ask: Ask, choice: dict[str, Any], message: str):
    bent(fake, lambda said: {**said, "choices": [{**c, **choice} for c in said["choices"]]})
    with pytest.raises(ValueError, match=message):
        ask()


def test_too_few_completions(fake: Fake, ask: Ask):
    bent(fake, lambda said: {**said, "choices": said["choices"][:1]})
    with pytest.raises(ValueError, match="gave 1 completions; asked for were 2"):
        ask()


def test_a_failure_that_passes_is_tried_again_and_no_answer_asked_twice(fake: Fake, ask: Ask):
    failures = iter([(503, {"error": {"message": "starting"}})])

    def sometimes(body: Any) -> Any:
        question = body["messages"][-1]["content"][-1]["text"]
        return next(failures, None) or fake.complete(body) if "2" in question else fake.complete(body)

    fake.answers["/v1/chat/completions"] = sometimes
    out, told = ask(max_wait=20.0, max_concurrency=1)
    assert [len(group) for group in out] == [2, 2, 2]
    questions = [b["messages"][-1]["content"][-1]["text"] for p, b in fake.asked if p.endswith("completions")]
    assert questions == ["Question 0?", "Question 1?", "Question 2?", "Question 2?"]
    assert told["rollout/retries"] == 1 and told["rollout/pushes"] == 1 and told["rollout/restarts"] == 0


def test_what_was_written_for_long_before_a_failure_is_no_waiting(fake: Fake, ask: Ask):
    once = iter([True])

    def dies(body: Any) -> Any:
        if next(once, False):
            time.sleep(1.0)
            return 503, {"error": {"message": "dead"}}
        return fake.complete(body)

    fake.answers["/v1/chat/completions"] = dies
    _, told = ask(max_wait=0.8)
    assert told["rollout/retries"] == 1


def test_answers_of_a_server_that_was_replaced_meanwhile_count_nowhere(fake: Fake, ask: Ask):
    """The new one answers at once and rightly, from the weights that it was started with: none of that is used."""
    once = iter([True])

    def complete(body: Any) -> Any:
        said = fake.complete(body)
        if next(once, False):
            fake.stamp = {"run": None, "version": None, "instance": "second"}
        if fake.stamp["version"] is None:
            said["choices"] = [{**c, "token_ids": [60, 61]} for c in said["choices"]]
        return said

    fake.answers["/v1/chat/completions"] = complete
    out, told = ask(max_wait=20.0)
    assert {tuple(t.ids.tolist()) for group in out for t in group} == {(40, 41)}
    assert told["rollout/restarts"] == 1 and told["rollout/pushes"] == 2


def test_weights_of_another_run_are_not_ours(fake: Fake, ask: Ask):
    fake.stamp = {"run": "somebody", "version": 3, "instance": "first"}
    _, told = ask()
    assert told["rollout/pushes"] == 1 and fake.stamp["run"] == "run"


def test_one_seed_asks_for_the_same_draws(fake: Fake, ask: Ask):
    def seeds() -> list[int]:
        torch.manual_seed(5)
        fake.asked.clear()
        ask()
        return sorted(body["seed"] for path, body in fake.asked if path.endswith("completions"))

    assert seeds() == seeds() and len(set(seeds())) == 3


def test_old_weights_are_removed(fake: Fake, model: Any, tmp_path: Path):
    rollout = engine(fake.url, tmp_path / "weights", model.model)
    for version in (1, 2):
        rollout.publish(model.model, version)
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["version-2"]
    rollout.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_request_holds(renderer: Renderer):
    two = prompt(renderer, 1, pictures=2)
    body = request(two, renderer, 8, SamplingParams(9, temperature=0.7, stop=("</answer>",)), 5, "policy")
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert all(part["image_url"]["url"].startswith("data:image/png;base64,") for part in parts[:2])
    assert (body["n"], body["max_tokens"], body["temperature"], body["seed"]) == (8, 9, 0.7, 5)
    assert body["logit_bias"] == {str(token): -100.0 for token in renderer.placeholder_ids}
    assert body["stop"] == ["</answer>"] and body["include_stop_str_in_output"]


def test_a_sound_is_sent_to_the_bit(renderer: Renderer):
    """As a WAV file of float32: its header is read by hand, and its samples are those that the trainer hears."""
    waveform = np.random.default_rng(0).standard_normal(4000).astype(np.float32) / 3
    plain = prompt(renderer, 1)
    turn = Message("user", (Part("audio", medium=0), Part("text", text="What?")))
    sound = DecodedMedium("audio", "a.wav", waveform=waveform, sampling_rate=16000)
    other = replace(plain, sample=replace(plain.sample, messages=(turn,)), media=[sound])
    part, _ = request(other, renderer, 2, PARAMS, 0, "policy")["messages"][0]["content"]
    head, _, sent = part["audio_url"]["url"].partition(";base64,")
    assert (part["type"], head) == ("audio_url", "data:audio/wav")
    data = base64.b64decode(sent)
    assert len(data) == 44 + 4 * 4000 == 8 + int.from_bytes(data[4:8], "little")
    form, channels, rate, _, width, bits = struct.unpack("<HHIIHH", data[20:36])
    assert (form, channels, rate, width, bits) == (3, 1, 16000, 4, 32)
    assert np.array_equal(np.frombuffer(data[44:], "<f4"), waveform)


def test_films_are_refused_by_name(renderer: Renderer):
    plain = prompt(renderer, 1)
    turn = Message("user", (Part("video", medium=0), Part("text", text="What?")))
    other = replace(plain, sample=replace(plain.sample, messages=(turn,)))
    message = "row rows:1: got a video, and vLLM 0.26 places its frames .* elsewhere.*engine: local"
    with pytest.raises(Refused, match=message):
        request(other, renderer, 2, PARAMS, 0, "policy")
