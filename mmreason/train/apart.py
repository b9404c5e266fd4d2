"""Rollouts under ZeRO-3: all weights gathered once for all of them, or each module's as it runs (`rollout.gather`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from mmreason.render import Renderer
from mmreason.rollout import in_step
from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import RolloutConfig
from mmreason.train.distributed import Backend
from mmreason.train.step import Trainer
from mmreason.train.together import blank, kinds_of
from mmreason.types import Rendered, Trajectory

log = logging.getLogger(__name__)
_said: set[str] = set()


def gathering(backend: Backend, rollout: RolloutConfig) -> AbstractContextManager[None]:
    """What must be open around a rollout; all ranks call it together, and take the same way.

    A server is given whole weights, so for that they are gathered.
    """
    if not backend.gathers or rollout.engine != "local" or rollout.gather == "whole":
        return backend.whole()
    if rollout.gather == "auto" and not backend.max(int(not backend.room_for_all())):
        return backend.whole()
    if rollout.gather == "auto" and "auto" not in _said:
        _said.add("auto")
        log.warning(
            "rollouts gather each module's weights as it runs: gathered all at once they would not fit beside what is "
            "there (rollout.gather: whole does so all the same, and is much faster)"
        )
    return backend.in_pieces()


def complete_in_step(
    trainer: Trainer,
    renderer: Renderer,
    prompts: Sequence[Rendered],
    count: int,
    params: SamplingParams,
    seeds: torch.Tensor | None = None,
) -> list[list[Trajectory]]:
    """`count` completions for each of this rank's prompts while weights lie apart; all ranks call it together.

    `seeds` are int64 [prompts x count], as in the plain rollout.
    """
    backend, placeholders = trainer.backend, trainer.family.placeholders
    for kinds in backend.gather(kinds_of(placeholders, prompts)):
        trainer.kinds |= kinds

    def beside(shown: Sequence[Rendered]) -> list[Rendered]:
        assert trainer.show is not None
        missing = sorted(trainer.kinds - kinds_of(placeholders, shown))
        rows = [trainer.show(kind).rendered for kind in missing]
        return rows if rows or shown else [blank(trainer.pad_id).rendered]

    return in_step.generate(
        trainer.model,
        trainer.family,
        renderer,
        prompts,
        count,
        params,
        seeds,
        largest=backend.max,
        beside=beside,
    )
