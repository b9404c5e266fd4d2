"""A round's groups where several ranks write one: its completions are put together before anything is judged.

Rewards, accuracy, gates and advantages see whole groups, on all ranks the same ones. A rank learns from what it wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmreason.rollout.vllm_requests import Prompt
from mmreason.train.distributed import Backend
from mmreason.types import Group, Rendered, Trajectory


@dataclass(frozen=True)
class Piece:
    """Completions of one prompt that this rank writes.

    Example: `Piece(2, 4, prompt)` begins with the fifth completion of the round's third group.
    """

    group: int  # its number among those that all ranks drew for the round
    first: int
    prompt: Prompt


@dataclass(frozen=True)
class Held:
    """A scored group as all ranks know it, and which of its completions this one wrote.

    Example: `Held(group, prompt, (4, 5, 6, 7))` is the second half of a group of eight.
    """

    group: Group  # its prompt has no media
    prompt: Rendered | None  # with media; None: this rank wrote nothing of it
    own: tuple[int, ...]


def to_score(
    backend: Backend, pieces: Sequence[Piece], written: Sequence[Sequence[Trajectory]], count: int
) -> list[tuple[int, Group]]:
    """Whole groups of `count` completions that this rank is to score, by number; all ranks call it together.

    Those who wrote a group take turns. A group that lacks completions, as some rank could not read its prompt, is
    nobody's.
    """
    parts: dict[int, dict[int, Sequence[Trajectory]]] = {}
    writers: dict[int, list[int]] = {}
    ours = [(piece.group, piece.first, some) for piece, some in zip(pieces, written, strict=True)]
    for rank, theirs in enumerate(backend.gather([part for part in ours if len(part[2]) < count])):
        for number, first, some in theirs:
            parts.setdefault(number, {})[first] = some
            writers.setdefault(number, []).append(rank)
    for number, first, some in ours:
        if len(some) == count:
            parts[number], writers[number] = {first: some}, [backend.rank]
    found = []
    for number, prompt in {piece.group: piece.prompt for piece in pieces}.items():
        whole = tuple(t for first in sorted(parts[number]) for t in parts[number][first])
        ranks = writers[number]
        if len(whole) == count and ranks[number % len(ranks)] == backend.rank:
            found.append((number, Group(prompt.sample, prompt.rendered, whole)))
    return found


def known_to_all(
    backend: Backend,
    scored: Sequence[tuple[int, Group]],
    pieces: Sequence[Piece],
    written: Sequence[Sequence[Trajectory]],
) -> list[Held]:
    """The round's groups in the order in which they were drawn, of what each rank scored; called by all together."""
    bare = [(number, replace(g, prompt=replace(g.prompt, media={}))) for number, g in scored]
    everyone = dict(pair for part in backend.gather(bare) for pair in part)
    own: dict[int, list[int]] = {}
    prompts: dict[int, Rendered] = {}
    for piece, some in zip(pieces, written, strict=True):
        own.setdefault(piece.group, []).extend(range(piece.first, piece.first + len(some)))
        prompts[piece.group] = piece.prompt.rendered
    return [
        Held(everyone[number], prompts.get(number), tuple(sorted(own.get(number, ()))))
        for number in sorted(everyone)
    ]
