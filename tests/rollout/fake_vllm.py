"""A real HTTP server that answers as it is told, where vLLM would stand; and one that holds a model and samples."""

from __future__ import annotations

import base64
import copy
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmreason.model.family import family_of
from mmreason.model.load import Loaded
from mmreason.model.save import read_weights
from mmreason.render import Renderer
from mmreason.rollout import generate
from mmreason.rollout.sampling import SamplingParams
from mmreason.types import DecodedMedium, MediumRef, Message, Part, Sample
from tests.rollout.vllm_prompts import SHAPE

FACTS = {"model_type": "qwen2_5_vl", "hidden_size": SHAPE.hidden, "num_hidden_layers": SHAPE.layers}
FACTS |= {"vocab_size": SHAPE.vocabulary, "logprobs_mode": "processed_logprobs"}
FACTS |= {"num_attention_heads": SHAPE.heads, "num_key_value_heads": SHAPE.kv_heads}
FACTS |= {"intermediate_size": SHAPE.intermediate}


class Fake:
    """Says what `answers` holds for a path (a value, or a function of the request); 404 for any other."""

    def __init__(self) -> None:
        self.stamp: dict[str, Any] = {"run": None, "version": None, "instance": "first"}
        self.asked: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "/version": {"version": "0.26.0"},
            "/v1/models": {"data": [{"id": "policy"}]},
            "/collective_rpc": self.rpc,
            "/pause?mode=wait": {},
            "/resume": {},
            "/v1/chat/completions": self.complete,
        }
        self.prompts: dict[str, list[int]] = {}  # text of the question -> ids
        self.dead = False  # hangs up on everybody

        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(json.loads(text) if text else None)

            def answer(self, body: Any) -> None:
                fake.asked.append((self.path, body))
                said = fake.answers.get(self.path, (404, {"detail": "Not Found"}))
                said = said(body) if callable(said) else said
                self.close_connection = fake.dead
                if fake.dead:
                    return
                code, value = said if isinstance(said, tuple) else (200, said)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = (
            False  # `close` waits for what is being answered: torch must not outlive Python
        )
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def rpc(self, body: Any) -> Any:
        if body["method"] == "mmreason_load":
            self.stamp |= {"run": body["kwargs"]["run"], "version": int(body["kwargs"]["version"])}
        return {"results": [{**FACTS, **self.stamp}]}

    def complete(self, body: Any) -> Any:
        question = body["messages"][-1]["content"][-1]["text"]
        logprobs = {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}
        choice = {"token_ids": [40, 41], "logprobs": logprobs, "finish_reason": "length"}
        return {"prompt_token_ids": self.prompts[question], "choices": [choice] * body["n"]}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _own_seed(seed: int) -> torch.Tensor:
    return torch.randint(0, 2**63 - 1, (), generator=torch.Generator().manual_seed(seed))


class Holder(Fake):
    """Holds a model, loads weights into it, and samples from it as a right server does: by a request's own seed."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.renderer, self.family = Renderer(loaded.processor), family_of(loaded.model, loaded.processor)
        self.model = copy.deepcopy(loaded.model)
        self._first = copy.deepcopy(loaded.model.state_dict())
        self._lock = threading.Lock()

    def replaced(self) -> None:
        """Dies and comes back: another instance, with the weights that it was started with."""
        with self._lock:
            self.model.load_state_dict(self._first)
            self.stamp = {"run": None, "version": None, "instance": f"{self.stamp['instance']}'"}

    def rpc(self, body: Any) -> Any:
        if body["method"] == "mmreason_load":
            with self._lock:
                read_weights(self.model, Path(body["kwargs"]["folder"]))
        return super().rpc(body)

    def complete(self, body: Any) -> Any:
        parts: list[Part] = []
        media: list[DecodedMedium] = []
        for part in body["messages"][-1]["content"]:
            if part["type"] == "image_url":
                png = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                parts.append(Part("image", medium=len(media)))
                media.append(DecodedMedium("image", "sent", image=Image.open(io.BytesIO(png))))
            else:
                parts.append(Part("text", text=part["text"]))
        refs = tuple(MediumRef("image", medium.name) for medium in media)
        sample = Sample("sent", "sent", (Message("user", tuple(parts)),), refs)
        prompt = self.renderer.prompt(sample, media)
        params = SamplingParams(body["max_tokens"], temperature=body["temperature"])
        seeds = torch.stack([_own_seed(body["seed"] + i) for i in range(body["n"])])  # as vLLM counts
        with self._lock:
            (group,) = generate.generate(
                self.model, self.family, self.renderer, [prompt], body["n"], params, seeds
            )
        choices = [
            {
                "token_ids": t.ids.tolist(),
                "logprobs": {"content": [{"logprob": x} for x in _known(t.logprobs)]},
                "finish_reason": t.finish,
            }
            for t in group
        ]
        return {"prompt_token_ids": prompt.ids.tolist(), "choices": choices}


def _known(logprobs: torch.Tensor | None) -> list[float]:
    assert logprobs is not None
    return logprobs.tolist()
