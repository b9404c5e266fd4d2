"""What ranks agree on before a step's first forward: as many micro-batches, and the same encoders in each of them.

ZeRO sums gradients in the order in which they become ready, and ZeRO-3 gathers weights as modules run. A rank whose
rows show no picture would leave the vision tower out: an error, a hang, or sums of different parameters. So it adds a
small row with a picture and nothing to learn, which takes the way of a real one: its features go into the input
embeddings, and everything runs in the order of the ranks that have pictures of their own.

Every micro-batch shows every kind of medium that any rank has shown since the stage began. To agree on each by itself
would not do: where ZeRO-3 (and offload) accumulates, a parameter that the first (the last) micro-batch leaves out
learns from the step before (not at all), which nothing says (seen with DeepSpeed 0.19.8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from mmreason.model.shared_fit import Unfit
from mmreason.model.shared_rows import beginning
from mmreason.render import Renderer
from mmreason.train.micro import Plan
from mmreason.types import (
    DecodedMedium,
    MediaKind,
    MediumRef,
    Message,
    Part,
    Rendered,
    Sample,
    TrainingSample,
)

if TYPE_CHECKING:
    from mmreason.train.step import Trainer

SIDE, FRAMES, SECONDS = 64, 4, 0.5  # of the media in rows that have nothing to learn
ShowKind = Callable[[str], TrainingSample]


def together(
    trainer: Trainer, rows: Sequence[TrainingSample], plans: Sequence[Plan]
) -> tuple[list[TrainingSample], list[Plan]]:
    """This rank's rows and micro-batches, filled up with rows that have nothing to learn where others do more.

    Raises:
        ValueError: no rank has a row.
    """
    backend = trainer.backend
    rounds = backend.max(len(plans))
    if not rounds:
        raise ValueError("a step needs at least one row on some rank; got none")
    rows = [*rows, blank(trainer.pad_id)]
    plans = [*plans, *[Plan([len(rows) - 1], [])] * (rounds - len(plans))]
    if not backend.lockstep:
        return rows, plans
    placeholders = trainer.family.placeholders
    mine = [kinds_of(placeholders, [rows[i].rendered for i in planned.rows]) for planned in plans]
    for kinds in backend.gather(set().union(*mine)):
        trainer.kinds |= kinds
    shown: dict[str, int] = {}  # kind -> its row
    for number, there in enumerate(mine):
        for kind in sorted(trainer.kinds - there):
            if kind not in shown:
                assert trainer.show is not None, f"a rank shows {kind} and this trainer cannot"
                shown[kind] = len(rows)
                rows.append(trainer.show(kind))
            plans[number] = _with_row(trainer, plans[number], rows, shown[kind])
    return rows, plans


def kinds_of(placeholders: dict[str, int], rows: Sequence[Rendered]) -> set[str]:
    """The kinds of media that rows show, by their placeholder tokens."""
    return {
        kind for kind, token in placeholders.items() if any(bool(row.ids.eq(token).any()) for row in rows)
    }


def _with_row(trainer: Trainer, planned: Plan, rows: Sequence[TrainingSample], number: int) -> Plan:
    """The micro-batch and one more row, which among shared prompts is a group of its own."""
    groups = planned.groups
    if groups:
        found = beginning(trainer.model, trainer.family, [rows[number].rendered])
        assert not isinstance(found, Unfit), found
        groups = [*groups, (found, [number])]
    return Plan([*planned.rows, number], groups)


def blank(pad_id: int) -> TrainingSample:
    """A row with nothing to learn: what a rank with fewer micro-batches, or none, runs to keep step with the others."""
    ids = torch.full((2,), pad_id)
    rendered = Rendered(
        "blank",
        ids,
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros_like(ids),
    )
    return _unlearned(rendered)


def shower(renderer: Renderer, sampling_rate: int) -> ShowKind:
    """kind -> a row that shows one small medium of that kind (grey, or silent) and has nothing to learn; made once."""
    made: dict[str, TrainingSample] = {}

    def show(kind: str) -> TrainingSample:
        if kind not in made:
            made[kind] = _unlearned(_shown(renderer, kind, sampling_rate))
        return made[kind]

    return show


def _shown(renderer: Renderer, kind: Any, sampling_rate: int) -> Rendered:
    name = f"nothing to learn ({kind})"
    parts = (Part(kind, medium=0), Part("text", text="-"))
    sample = Sample(name, "blank", (Message("user", parts),), (MediumRef(kind, name),))
    rendered = renderer.prompt(sample, [_medium(kind, name, sampling_rate)])
    written = torch.zeros_like(rendered.sampled)
    written[-1] = True  # so that a prompt and a row behind it can be told apart
    return replace(rendered, sampled=written)


def _medium(kind: MediaKind, name: str, sampling_rate: int) -> DecodedMedium:
    grey = np.full((FRAMES, SIDE, SIDE, 3), 128, dtype=np.uint8)
    if kind == "image":
        return DecodedMedium(kind, name, image=Image.fromarray(grey[0]))
    if kind == "audio":
        silence = np.zeros(round(SECONDS * sampling_rate), dtype=np.float32)
        return DecodedMedium(kind, name, waveform=silence, sampling_rate=sampling_rate)
    return DecodedMedium(kind, name, frames=grey, timestamps=np.arange(FRAMES) * SECONDS / FRAMES)


def _unlearned(rendered: Rendered) -> TrainingSample:
    nothing = torch.zeros(len(rendered))
    return TrainingSample(rendered, aggregation=nothing, count=0.0, ce=nothing, rl=nothing, kl=nothing)
