"""What every stage of a run shares, and the contract a stage's method fulfils."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from mmreason.data.quarantine import Quarantine
from mmreason.model.encode_once import encode_once
from mmreason.model.family import Family
from mmreason.model.feature_cache import FeatureCache
from mmreason.render import Renderer
from mmreason.rollout.vllm_inside import VLLMInside
from mmreason.rollout.vllm_rollout import VLLMRollout
from mmreason.schema import Recipe
from mmreason.train.distributed import Backend
from mmreason.train.feed import Feed
from mmreason.train.metrics import Metrics
from mmreason.train.step import Objective, Trainer
from mmreason.types import Sample, TrainingSample


@dataclass
class Context:
    """The run's long-lived parts."""

    recipe: Recipe
    run_dir: Path
    model: Any
    processor: Any
    family: Family
    renderer: Renderer
    feed: Feed
    quarantine: Quarantine
    backend: Backend
    metrics: Metrics
    sources: dict[str, list[Sample]]
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall time of its training
    remote: VLLMRollout | VLLMInside | None = (
        None  # vLLM, which writes GRPO's completions; None: this process does
    )
    features: FeatureCache | None = None  # what encoders made of media; None: every row has its own encoded

    def encoding(self, model: Any = None) -> AbstractContextManager[None]:
        """While it is open, the encoders of the run's model (or of its reference) see each distinct medium once.

        Not where weights are gathered as modules run: ranks would gather as often as each has media of its own.
        """
        if self.backend.gathers and model is None:
            return nullcontext()
        return encode_once(self.model if model is None else model, self.family, self.features)


@dataclass(frozen=True)
class Batch:
    """What a method hands the step: this rank's rows, how to read them, and its own metrics.

    A method whose loss is no stream of tokens brings its own step in `learn` ((trainer, progress) -> metrics), and
    no rows.

    Example: `Batch(rows=[...], objective=Objective(), metrics={"reward": 0.4})`.
    """

    rows: list[TrainingSample]
    objective: Objective
    metrics: dict[str, float]
    learn: Callable[[Trainer, float], dict[str, float]] | None = None


class Method(Protocol):
    """A stage's method: where its batches come from, and the state it owns."""

    def collect(self, progress: float, step: int) -> Batch:
        """The next optimizer step's rows; `progress` is the share of the stage that is behind us."""
        ...

    def buffered(self) -> list[TrainingSample]:
        """Rows that a checkpoint must hold because they cannot be made again."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        ...

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        """The inverse of `state_dict` and `buffered`."""
        ...
