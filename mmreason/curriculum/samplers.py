"""Prompt samplers: `uniform` passes, and `easy_to_hard`, a window that slides up the order of difficulty.

Draws depend only on the seed, the pool and a few counters, so the counters are the whole state.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from mmreason.curriculum.base import Sampler
from mmreason.schema import SamplerConfig
from mmreason.types import Group, Sample

log = logging.getLogger(__name__)


class Uniform:
    """Every prompt once per pass, each pass in a new order; a pass never loses its last rows."""

    def __init__(self, samples: Sequence[Sample], seed: int) -> None:
        self.pool = sorted(samples, key=lambda s: (s.source, s.id))
        self.seed = seed
        self.drawn = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def next(self, n: int, step: int | None = None) -> list[Sample]:
        out = []
        for _ in range(n):
            epoch, place = divmod(self.drawn, len(self.pool))
            if self._order[0] != epoch:
                order = list(range(len(self.pool)))
                random.Random(f"{self.seed}:{epoch}").shuffle(order)
                self._order = (epoch, order)
            out.append(self.pool[self._order[1][place]])
            self.drawn += 1
        return out

    def observe(self, groups: Sequence[Group]) -> None:
        """Uniform draws learn nothing from results."""

    def metrics(self) -> dict[str, float]:
        return {"curriculum/epoch": self.drawn / len(self.pool)}

    def state_dict(self) -> dict[str, Any]:
        return {"pool": fingerprint(self.pool), "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_pool(state, self.pool)
        self.drawn = state["drawn"]


class EasyToHard:
    """SARI's easy-to-hard order (arXiv 2504.15900) as a sliding window, so that each step still mixes prompts.

    The pool is sorted by (difficulty, id), rows without a difficulty last. The window holds `window` of it,
    opens on the easiest rows at step 0 and on the hardest from step `steps` - 1 on. In the window the
    least-used prompts come first, in random order, so no row is drawn twice while another waits.
    """

    def __init__(self, samples: Sequence[Sample], window: float, steps: int, seed: int) -> None:
        self.pool = sorted(samples, key=difficulty_order)
        unknown = [s.id for s in self.pool if s.difficulty is None]
        if unknown:
            log.warning(
                "easy_to_hard: %d of %d rows have no difficulty and come last, such as %s",
                len(unknown),
                len(self.pool),
                ", ".join(unknown[:3]),
            )
        self.window, self.steps, self.seed = window, steps, seed
        self.calls = 0
        self.step = 0
        self.used = [0] * len(self.pool)
        self._drawn: list[Sample] = []

    def bounds(self, n: int) -> tuple[int, int]:
        """[start, stop) of the window in the sorted pool, at least n rows wide where the pool has them."""
        size = len(self.pool)
        width = min(size, max(1, n, round(self.window * size)))
        progress = min(1.0, self.step / (self.steps - 1)) if self.steps > 1 else 1.0
        start = round(progress * (size - width))
        return start, start + width

    def next(self, n: int, step: int | None = None) -> list[Sample]:
        self.step = self.calls if step is None else step
        start, stop = self.bounds(n)
        shuffled = list(range(start, stop))
        random.Random(f"{self.seed}:{self.calls}").shuffle(shuffled)
        self.calls += 1
        chosen: list[int] = []
        while len(chosen) < n:  # more than one turn only where the whole pool is smaller than n
            turn = sorted(shuffled, key=lambda i: self.used[i])[: n - len(chosen)]
            for i in turn:
                self.used[i] += 1
            chosen += turn
        self._drawn = [self.pool[i] for i in chosen]
        return self._drawn

    def observe(self, groups: Sequence[Group]) -> None:
        """The order is fixed beforehand; results do not move it."""

    def metrics(self) -> dict[str, float]:
        start, stop = self.bounds(1)
        size = len(self.pool)
        out = {
            "curriculum/window_start": start / size,
            "curriculum/window_end": stop / size,
            "curriculum/epoch": sum(self.used) / size,
        }
        known = [s.difficulty for s in self._drawn if s.difficulty is not None]
        if known:
            out["curriculum/difficulty"] = fmean(known)
        return out

    def state_dict(self) -> dict[str, Any]:
        return {
            "pool": fingerprint(self.pool),
            "calls": self.calls,
            "step": self.step,
            "used": list(self.used),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_pool(state, self.pool)
        self.calls, self.step, self.used = state["calls"], state["step"], list(state["used"])


def peek(sampler: Sampler, n: int, step: int) -> list[Sample]:
    """What `sampler.next(n, step)` will give; nothing is drawn."""
    twin = copy.copy(sampler)
    twin.load_state_dict(sampler.state_dict())
    return twin.next(n, step)


def difficulty_order(sample: Sample) -> tuple[bool, float, str, str]:
    """Sort key: by difficulty, ties by id, rows without one last."""
    unknown = sample.difficulty is None
    return unknown, 0.0 if sample.difficulty is None else sample.difficulty, sample.id, sample.source


def fingerprint(pool: Sequence[Sample]) -> str:
    """A short digest of the ids in their order."""
    text = "\n".join(f"{s.source}\t{s.id}" for s in pool)
    return f"{len(pool)}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_pool(state: dict[str, Any], pool: Sequence[Sample]) -> None:
    """ValueError unless the state was saved over these very rows."""
    here = fingerprint(pool)
    if state["pool"] != here:
        raise ValueError(
            f"the sampler's state belongs to other rows (saved {state['pool']}, now {here}); "
            "restore the data this run began with, or start a new output_dir"
        )


SAMPLERS: dict[str, Callable[[SamplerConfig, Sequence[Sample], int, int], Sampler]] = {
    "uniform": lambda cfg, samples, steps, seed: Uniform(samples, seed),
    "easy_to_hard": lambda cfg, samples, steps, seed: EasyToHard(
        samples, cfg.window, cfg.steps or steps, seed
    ),
}


def make_sampler(cfg: SamplerConfig, samples: Sequence[Sample], steps: int, seed: int) -> Sampler:
    """The recipe's sampler over `samples`; `steps` is the stage's length, over which a curriculum unfolds."""
    if not samples:
        raise ValueError(f"sampler {cfg.name}: there are no rows to draw from; check the stage's data")
    return SAMPLERS[cfg.name](cfg, samples, steps, seed)
