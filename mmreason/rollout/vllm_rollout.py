"""Completions from a vLLM server: each from one known version of the weights, whatever the server goes through.

A round asks for every prompt that has no answer yet. Its answers count only if the server is the same instance with
the same version before and after: weights change by our own pushes alone, so what lies between was made by that
version. A server that died and came back has another instance and no version; it gets the weights again, and the
round is asked again. So nothing stale is used, and nothing counts twice.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import AsyncResult, ThreadPool  # of daemon threads: none holds up the process's end
from pathlib import Path
from typing import Any

from mmreason.render import Renderer
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.vllm_client import SERVE, Client, Refused, Unreachable
from mmreason.rollout.vllm_requests import Prompt, draw_seeds, request, trajectories
from mmreason.rollout.vllm_server import Facts, load_weights, look, write_weights
from mmreason.schema import RolloutConfig
from mmreason.types import Trajectory

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries


class VLLMRollout:
    """The engine `vllm` of a run.

    Args:
        folder: where weights are written for the server to read; `close` removes it.
        run: names this process (or all ranks together), so that another run's weights are never taken for ours.
        pushes: whether this rank gives the server its weights; the others wait until they are there.

    Example: `engine.publish(model, 7)`, then `engine.complete(prompts, 8, params, renderer)`.
    """

    def __init__(
        self, config: RolloutConfig, folder: Path, model: Any, run: str, *, pushes: bool = True
    ) -> None:
        self.config, self.run, self.pushes = config, run, pushes
        self.folder = folder.resolve()
        self.client = Client(config.base_url, config.timeout)
        self.version = -1  # of the weights that completions must come from
        self._model = model
        self._instance: str | None = None  # the one that we spoke to last
        self._counts = {"rollout/retries": 0.0, "rollout/restarts": 0.0, "rollout/pushes": 0.0}
        self._seconds = {"time/push": 0.0, "time/generate": 0.0}
        self._beside: ThreadPool | None = None  # the thread of `start`
        self._closed = threading.Event()

    def connect(self) -> None:
        """Wait until the server answers, and check that it fits.

        Raises:
            ValueError: it does not, or did not answer within `rollout.max_wait` seconds.
        """
        self._persist(lambda: look(self.client, self._model))

    def publish(self, model: Any, version: int) -> None:
        """From now on completions come from the weights that `model` has at this call; `version` is their stamp.

        Raises:
            ValueError: as `complete`.
        """
        self.version = version
        if self.pushes:
            write_weights(model, self._weights(version))
            self._persist(self._ready)

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
            ValueError: the server refuses, does not fit any more, or did not answer for `rollout.max_wait` seconds.
        """
        return self._complete(prompts, count, params, renderer, seeds or draw_seeds(len(prompts)))

    def start(
        self,
        prompts: Sequence[Prompt],
        count: int,
        params: SamplingParams,
        renderer: Renderer,
        seeds: Sequence[int] | None = None,
    ) -> AsyncResult[list[list[Trajectory]]]:
        """As `complete`, beside the caller, whose generator has made its draws when this returns.

        `get` of what comes back waits, and raises what `complete` would; until then nothing is published.
        """
        if self._beside is None:
            self._beside = ThreadPool(1)
        return self._beside.apply_async(
            self._complete, (prompts, count, params, renderer, seeds or draw_seeds(len(prompts)))
        )

    def end_rollout(self) -> dict[str, float]:
        """The completions are there: tells what happened since the last call."""
        out = {**self._seconds, **self._counts}
        self._counts = dict.fromkeys(self._counts, 0.0)
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return out

    def close(self) -> None:
        """Give up what is on its way, and remove the weights that were written for the server."""
        self._closed.set()
        if self._beside is not None:
            self._beside.terminate()
        if self.pushes:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- one round

    def _complete(
        self,
        prompts: Sequence[Prompt],
        count: int,
        params: SamplingParams,
        renderer: Renderer,
        seeds: Sequence[int],
    ) -> list[list[Trajectory]]:
        if not prompts:
            return []
        began = time.perf_counter()
        done: dict[int, list[Trajectory]] = {}

        def round_() -> None:
            before = self._ready()
            missing = [i for i in range(len(prompts)) if i not in done]
            bodies = {
                i: request(prompts[i], renderer, count, params, seeds[i], before.model) for i in missing
            }
            got, failure = self._ask(bodies)
            answered = {
                i: trajectories(prompts[i], answer, renderer, count, params) for i, answer in got.items()
            }
            after = look(self.client, self._model)
            if (after.instance, after.run, after.version) != (before.instance, self.run, self.version):
                raise Unreachable(
                    f"{self.config.base_url}: while completions were made the server lost version {self.version}"
                )
            done.update(answered)
            if failure is not None:
                raise failure

        self._persist(round_, lambda: len(done))
        self._seconds["time/generate"] += time.perf_counter() - began
        return [done[i] for i in range(len(prompts))]

    def _ready(self) -> Facts:
        """The server, once it holds our version; pushes the weights where they are not there."""
        facts = look(self.client, self._model)
        if self._instance not in (None, facts.instance):
            self._counts["rollout/restarts"] += 1
            log.warning("%s was started anew; it gets version %d again", self.config.base_url, self.version)
        self._instance = facts.instance
        if (facts.run, facts.version) == (self.run, self.version):
            return facts
        if not self.pushes:
            raise Unreachable(f"{self.config.base_url}: version {self.version} is not there yet")
        if facts.run not in (None, self.run):
            log.warning(
                "%s held weights of another run (%s); it now gets ours", self.config.base_url, facts.run
            )
        began = time.perf_counter()
        load_weights(self.client, self._weights(self.version), self.run, self.version)
        self._seconds["time/push"] += time.perf_counter() - began
        self._counts["rollout/pushes"] += 1
        for old in self.folder.glob("version-*"):
            if old != self._weights(self.version):
                shutil.rmtree(old)
        return look(self.client, self._model)

    def _ask(self, bodies: dict[int, Any]) -> tuple[dict[int, Any], Unreachable | None]:
        """Answers by prompt, and why some are missing; after a first failure no more are asked for."""
        failed = threading.Event()

        def one(body: Any) -> Any:
            if failed.is_set():
                return Unreachable("not asked")
            try:
                return self.client.post("/v1/chat/completions", body)
            except Unreachable as error:
                failed.set()
                return error

        with ThreadPool(min(len(bodies), self.config.max_concurrency)) as pool:
            answers = dict(zip(bodies, pool.map(one, bodies.values(), chunksize=1), strict=True))
        failures = [a for a in answers.values() if isinstance(a, Unreachable) and str(a) != "not asked"]
        got = {i: answer for i, answer in answers.items() if not isinstance(answer, Unreachable)}
        return got, failures[0] if failures else None

    def _persist(self, attempt: Callable[[], object], progress: Callable[[], int] = lambda: 0) -> None:
        """Call `attempt` until it succeeds; what is unreachable is tried again, more and more slowly.

        Raises:
            ValueError: nothing went forward for `rollout.max_wait` seconds after a first failure.
        """
        pause, since, so_far = FIRST_PAUSE, math.inf, progress()
        while True:
            try:
                attempt()
                return
            except Unreachable as error:
                now = time.monotonic()
                if progress() != so_far:
                    pause, since, so_far = FIRST_PAUSE, now, progress()
                since = min(since, now)  # completions may have been written for long before the server died
                waited = now - since
                if waited + pause > self.config.max_wait:
                    raise ValueError(
                        f"rollout.engine: vllm: {error}; gave up after {waited:.0f} s (rollout.max_wait: "
                        f"{self.config.max_wait:g}); {SERVE} and give its address as rollout.base_url, or raise "
                        "rollout.timeout where it is only slow; the run goes on from its last checkpoint"
                    ) from error
                self._counts["rollout/retries"] += 1
                log.warning("%s; trying again in %.1f s", error, pause)
                if self._closed.wait(pause):
                    raise ValueError(
                        f"{self.config.base_url}: the run ended while it was waited for"
                    ) from error
                pause = min(2 * pause, LONGEST_PAUSE)
            except Refused as error:
                raise ValueError(f"rollout.engine: vllm: {error}") from error

    def _weights(self, version: int) -> Path:
        return self.folder / f"version-{version}"
