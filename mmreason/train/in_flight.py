"""The next rollout on its way while this one is trained on (`rollout.staleness: 1`), and how a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mmreason.render import Renderer
from mmreason.rollout.generate import trajectory
from mmreason.rollout.stopping import StopStrings
from mmreason.rollout.vllm_requests import Prompt
from mmreason.train.pieces import Piece
from mmreason.types import ROLE_CODES, Rendered, TrainingSample, Trajectory

_BETWEEN = "\t"  # a piece's group and first completion, and its row's source and id, in a checkpoint


@dataclass(frozen=True)
class InFlight:
    """A round of completions that was asked for.

    Example: `InFlight(pieces, 7, engine.start([p.prompt for p in pieces], 8, params, renderer).get)`.
    """

    pieces: Sequence[Piece]
    version: int  # of the weights that write them
    take: Callable[[], list[list[Trajectory]]]  # waits for them; raises what went wrong; may be called again

    def rows(self, first_group: int) -> list[TrainingSample]:
        """Its completions, once they are there, without their prompts, which their samples give again.

        Their groups are numbered from `first_group` on, so that they stand apart from rows that are trained on.
        """
        return [
            _row(_name(piece), written, first_group + index)
            for index, (piece, some) in enumerate(zip(self.pieces, self.take(), strict=True))
            for written in some
        ]


def parted(rows: Sequence[TrainingSample]) -> tuple[list[TrainingSample], list[TrainingSample]]:
    """A checkpoint's rows: those that are trained on, and those of `InFlight.rows`, which no prompt begins."""
    used = [row for row in rows if not row.rendered.sampled[0]]
    return used, [row for row in rows if row.rendered.sampled[0]]


def restored(
    version: int,
    rows: Sequence[TrainingSample],
    prompt_of: Callable[[str, str], Prompt | None],
    renderer: Renderer,
    stop_strings: Sequence[str],
) -> InFlight:
    """The inverse of `InFlight.rows`; a prompt that can no more be read (None) goes with its completions."""
    stop = StopStrings(tuple(stop_strings), renderer.decode) if stop_strings else None
    groups: dict[int, tuple[str, list[Trajectory]]] = {}
    for row in rows:
        written = trajectory(row.rendered.ids, renderer, stop, row.sampling_logprobs)
        groups.setdefault(row.group, (row.rendered.sample_id, []))[1].append(written)
    pieces, completed = [], []
    for name, some in groups.values():
        number, first, source, sample_id = name.split(_BETWEEN, 3)
        prompt = prompt_of(source, sample_id)
        if prompt is not None:
            pieces.append(Piece(int(number), int(first), prompt))
            completed.append(some)
    return InFlight(pieces, version, lambda: completed)


def _name(piece: Piece) -> str:
    sample = piece.prompt.sample
    return _BETWEEN.join([str(piece.group), str(piece.first), sample.source, sample.id])


def _row(name: str, written: Trajectory, group: int) -> TrainingSample:
    """A completion alone: its tokens, and what they were sampled with."""
    nothing = torch.zeros(len(written))
    rendered = Rendered(
        name,
        written.ids,
        torch.full((len(written),), ROLE_CODES["assistant"], dtype=torch.int8),
        written.sampled,
        torch.zeros_like(written.ids),
    )
    return TrainingSample(
        rendered,
        aggregation=nothing,
        count=0.0,
        ce=nothing,
        rl=nothing,
        kl=nothing,
        group=group,
        sampling_logprobs=written.logprobs,
    )
