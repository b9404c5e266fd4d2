"""Which engine writes the completions: the forked one wherever it fits the model, the plain one otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mmreason.model.shared_fit import unshareable
from mmreason.rollout import forked, generate
from mmreason.schema import SharedPrefix
from mmreason.types import Trajectory

log = logging.getLogger(__name__)

# (model, family, renderer, prompts, count, params[, seeds]) -> `count` completions for each prompt, in their order
Engine = Callable[..., list[list[Trajectory]]]
_said: set[str] = set()


def engine(model: Any, shared_prefix: SharedPrefix) -> Engine:
    """The engine for a model: `off` the plain one, `auto` the forked one where it fits, `require` that or an error.

    Raises:
        ValueError: `require`, and this model's prompts cannot be forked; names what stands against it.
    """
    if shared_prefix == "off":
        return generate.generate
    reason = unshareable(model)
    if reason is None:
        return forked.generate
    if shared_prefix == "require":
        raise ValueError(
            f"shared_prefix: require cannot be met in rollouts: {reason.why}; allowed for this model are auto (the "
            "plain rollout where sharing does not fit) and off"
        )
    if reason.why not in _said:
        _said.add(reason.why)
        log.warning("rollouts prefill every row by itself (%s): %s", reason.name, reason.why)
    return generate.generate
