"""Which rows go through the model together, and whether they are packed there, sharing prompts, or padded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mmreason.data.loader import collate, pack
from mmreason.model.family import Family
from mmreason.model.shared_fit import Unfit, untrainable
from mmreason.model.shared_rows import Shared, alone, beginning, pack_rows
from mmreason.schema import SharedPrefix
from mmreason.train.distributed import Backend
from mmreason.train.scoring import Micro
from mmreason.types import TrainingSample

log = logging.getLogger(__name__)
Part = tuple[
    Shared, list[int]
]  # what a group shares, and its rows by number; a row of no group is one itself


@dataclass(frozen=True)
class Plan:
    """One micro-batch to be: its rows by number, and as what groups they are packed into one row (none: padded).

    Example: `Plan([0, 1, 2], [])`.
    """

    rows: list[int]
    groups: list[Part]


@dataclass
class Sharing:
    """Whether a trainer's rows are packed, sharing prompts, and what stood against it so far."""

    mode: SharedPrefix = "off"
    said: set[str] = field(default_factory=set)  # reasons that the log has
    plain: Counter[str] = field(
        default_factory=Counter
    )  # reason -> rows computed one by one, since `take_plain`
    _looked: bool = False
    _unfit: Unfit | None = None

    def refuse(self, reason: Unfit, rows: int) -> None:
        """Count rows that go by themselves; name the reason in the log, once.

        Raises:
            ValueError: `shared_prefix: require`.
        """
        if self.mode == "require":
            raise ValueError(
                f"shared_prefix: require cannot be met in training: {reason.why}; allowed for this model are auto (the "
                "plain forward where sharing does not fit) and off"
            )
        self.plain[reason.name] += rows
        if reason.name not in self.said:
            self.said.add(reason.name)
            log.warning("training computes rows one by one (%s): %s", reason.name, reason.why)

    def required(self, model: Any) -> None:
        """Say before the first step what would otherwise end the run in it.

        Raises:
            ValueError: `shared_prefix: require`, and something about the model stands against sharing.
        """
        if self.mode == "require" and (reason := self.unfit(model)) is not None:
            self.refuse(reason, 0)

    def unfit(self, model: Any) -> Unfit | None:
        """What about the model stands against sharing; looked at once, as models stay as they are."""
        if not self._looked:
            self._looked, self._unfit = True, untrainable(model)
        return self._unfit

    def take_plain(self, backend: Backend) -> dict[str, float]:
        """Rows of all ranks that went by themselves since the last call, by reason."""
        if self.mode == "off":
            return {}
        everywhere = sum(backend.gather(self.plain), Counter[str]())
        self.plain = Counter()
        return {f"shared_prefix/plain/{name}": float(rows) for name, rows in sorted(everywhere.items())}


def plan(
    model: Any, family: Family, rows: Sequence[TrainingSample], max_tokens: int, sharing: Sharing
) -> list[Plan]:
    """Micro-batches of at most `max_tokens` tokens that the LLM computes; rows of one group are never split.

    Rows are packed behind each other, those of a group and the questions of a row behind one prompt, unless `sharing`
    is off or something stands against it; what cannot be packed is padded to rows of one length.

    Raises:
        ValueError: `shared_prefix: require`, and some rows cannot be packed; names what stands against it.
    """
    parts: list[Part] = []
    unfit = sharing.unfit(model) if sharing.mode != "off" else None
    for chosen in _groups(rows) if sharing.mode != "off" else []:
        rendered = [rows[i].rendered for i in chosen]
        grouped = rows[chosen[0]].group >= 0
        found = unfit or (beginning(model, family, rendered) if grouped else alone(rendered[0]))
        if isinstance(found, Unfit):
            sharing.refuse(found, len(chosen))
        else:
            parts.append((found, chosen))
    together = {i for _, chosen in parts for i in chosen}
    apart = [i for i in range(len(rows)) if i not in together]
    plain = [Plan([apart[j] for j in some], []) for some in pack([rows[i] for i in apart], max_tokens)]
    return _shared_plans(rows, parts, max_tokens) + plain


def _groups(rows: Sequence[TrainingSample]) -> list[list[int]]:
    """Rows by number, group by group; a row of no group is alone."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault((True, row.group) if row.group >= 0 else (False, i), []).append(i)
    return list(groups.values())


def _shared_plans(rows: Sequence[TrainingSample], parts: list[Part], max_tokens: int) -> list[Plan]:
    """Groups into micro-batches, the largest first, each into the first that has room."""
    sizes = [shared.tokens([rows[i].rendered for i in chosen]) for shared, chosen in parts]
    plans: list[Plan] = []
    room: list[int] = []
    for j in sorted(range(len(parts)), key=lambda j: (-sizes[j], j)):
        at = next((k for k, left in enumerate(room) if sizes[j] <= left), len(plans))
        if at == len(plans):
            plans.append(Plan([], []))
            room.append(max_tokens)
        plans[at].groups.append(parts[j])
        plans[at].rows.extend(parts[j][1])
        room[at] -= sizes[j]
    return plans


def build(
    model: Any,
    family: Family,
    rows: Sequence[TrainingSample],
    planned: Plan,
    pad_id: int,
    device: torch.device,
) -> Micro:
    """The tensors of a planned micro-batch; of a shared prompt, its media are there once."""
    chosen = [rows[i] for i in planned.rows]
    if not planned.groups:
        return Micro(collate(chosen, pad_id), None)
    bare_rows = [replace(row, rendered=replace(row.rendered, media={})) for row in chosen]
    groups = [(shared, [rows[i].rendered for i in numbers]) for shared, numbers in planned.groups]
    return Micro(collate(bare_rows, pad_id), pack_rows(model, family, groups, device))
