"""How a world asks: kinds of questions, and the loop that keeps their answers balanced over endless scenes.

A world brings how to draw a scene, how large it is, and how to write the chosen questions beside its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np

from mmreason.data.worlds.balance import Balance, Candidate, pilot_keys
from mmreason.data.worlds.rows import Question, SceneItem, Thought, WorldSettings, generator

Rng = np.random.Generator
Scene = TypeVar("Scene")
Item = TypeVar("Item")
QUESTIONS_PER_SCENE = 4
SIZE_SHARE = 0.65  # of the difficulty; the kind of question gives the rest
PILOT_SCENES = 400
DRY_SCENES = 5000  # scenes in a row without a question before the settings are called impossible


@dataclass(frozen=True)
class Draft:
    """A question before its evidence and its difficulty are known.

    Example: `Draft("count the stars.", "numeric", ("2",), thought, marks=(first_star, second_star))`.
    """

    text: str
    problem_type: str
    answers: tuple[str, ...]
    thought: Thought
    options: tuple[str, ...] = ()  # in the order they are shown; the thought goes through them in that order
    marks: tuple[Any, ...] = ()  # what a person would point at, in the world's own terms
    noticed: str = ""  # what its thought begins with, where that is not the scene's own list


@dataclass(frozen=True)
class Kind(Generic[Scene]):
    """One kind of question: what a scene offers of it, and how one offer is asked.

    `weight` 0..1 is how hard the kind is beside the others in a scene of the same size.
    """

    name: str
    weight: float
    offers: Callable[[Scene, Rng], list[Candidate]]
    ask: Callable[[Scene, Candidate, Rng], Draft]


def pick(texts: Sequence[str], rng: Rng) -> str:
    """One phrasing."""
    return texts[int(rng.integers(len(texts)))]


def shuffled(items: Sequence[Item], rng: Rng) -> tuple[Item, ...]:
    """The items in a random order."""
    return tuple(items[i] for i in rng.permutation(len(items)))


def look_first(thought: Thought, noticed: str) -> Thought:
    """The thought as an observer writes it: first all that is noticed, then what of it matters, then the conclusion.

    What is written down once can be looked up by its words; a small model learns that far sooner than to search
    the medium itself.
    """
    return replace(thought, caption=noticed, reasoning=f"{thought.caption}, {thought.reasoning}")


@dataclass(frozen=True)
class Asker(Generic[Scene]):
    """What the loop needs of a world.

    `draw(sizes, split, rng)` gives a scene of one of these sizes that belongs to the split; `write(scene, chosen,
    name, rng)` asks the chosen questions and makes the files.

    Example: `Asker("video", KINDS, 6, lambda clip: len(clip.entries), draw_clip, write)`.
    """

    world: str
    kinds: Mapping[str, Kind[Scene]]
    most: int  # the largest size of a scene
    size: Callable[[Scene], int]
    draw: Callable[[Sequence[int], str, Rng], Scene]
    write: Callable[[Scene, list[Candidate], str, Rng], SceneItem]

    def difficulty(self, size: int, kind: str) -> float:
        """0 easy .. 1 hard: mostly how large the scene is, partly the kind of question."""
        return SIZE_SHARE * (size - 1) / (self.most - 1) + (1 - SIZE_SHARE) * self.kinds[kind].weight

    def questions(
        self,
        scene: Scene,
        chosen: Sequence[Candidate],
        noticed: str,
        evidence: Callable[[tuple[Any, ...]], tuple[Mapping[str, Any], ...]],
        rng: Rng,
    ) -> tuple[Question, ...]:
        """The chosen questions in words; every thought begins with what is `noticed` (of the scene, where the question
        does not ask for something else of it), `evidence` reads marks."""
        out = []
        for candidate in chosen:
            d = self.kinds[candidate.kind].ask(scene, candidate, rng)
            thought = look_first(d.thought, d.noticed or noticed)
            difficulty = self.difficulty(self.size(scene), candidate.kind)
            out.append(
                Question(
                    candidate.kind,
                    d.text,
                    d.problem_type,
                    d.answers,
                    thought,
                    difficulty,
                    d.options,
                    evidence(d.marks),
                )
            )
        return tuple(out)

    def open_kinds(self, settings: WorldSettings) -> dict[int, tuple[str, ...]]:
        """Size -> kinds whose difficulty is in the range; sizes without a kind are left out."""
        low, high = settings.difficulty
        fits = {
            n: tuple(k for k in settings.kinds if low <= self.difficulty(n, k) <= high)
            for n in range(1, self.most + 1)
        }
        return {n: kinds for n, kinds in fits.items() if kinds}

    def _offers(self, scene: Scene, rng: Rng, kind: str) -> list[Candidate]:
        return self.kinds[kind].offers(scene, rng)

    def _pilot(self, open_at: Mapping[int, Sequence[str]]) -> Iterator[list[Candidate]]:
        """What pilot scenes offer; the same for every seed and split, so that all ask for the same answers."""
        for i in range(PILOT_SCENES):
            rng = generator(self.world, "pilot", i)
            scene = self.draw(sorted(open_at), "train", rng)
            yield [c for kind in open_at[self.size(scene)] for c in self._offers(scene, rng, kind)]

    def scenes(self, settings: WorldSettings) -> Iterator[SceneItem]:
        """Endless scenes with up to four questions each.

        Raises ValueError when no scene of the difficulty asked for can carry the kinds asked for.
        """
        open_at = self.open_kinds(settings)
        impossible = ValueError(
            f"world {self.world}: kinds {list(settings.kinds)} at difficulty {settings.difficulty} give no question; "
            "widen the range"
        )
        if not open_at:
            raise impossible
        balance = Balance(pilot_keys(self._pilot(open_at)))
        index = dry = 0
        while dry < DRY_SCENES:
            rng = generator(self.world, settings.seed, settings.split, index)
            scene = self.draw(sorted(open_at), settings.split, rng)
            kinds = open_at[self.size(scene)]
            chosen = balance.choose(kinds, partial(self._offers, scene, rng), QUESTIONS_PER_SCENE, rng)
            if chosen:
                yield self.write(scene, chosen, f"{settings.stream}-{index:06d}", rng)
            dry = 0 if chosen else dry + 1
            index += 1
        raise impossible


def merged(
    shares: Sequence[tuple[Asker[Any], WorldSettings]], weights: Sequence[float], settings: WorldSettings
) -> Iterator[SceneItem]:
    """The scenes of several askers, each with its own share of the settings, questions in proportion to `weights`.

    Raises ValueError when none of them has a question: no scene of the difficulty can carry the kinds asked for.
    """
    streams = [
        (weight, asker.scenes(share))
        for (asker, share), weight in zip(shares, weights, strict=True)
        if asker.open_kinds(share)
    ]
    if not streams:
        raise ValueError(
            f"world {settings.world}: kinds {list(settings.kinds)} at difficulty {settings.difficulty} "
            "give no question; widen the range"
        )
    asked = [0] * len(streams)
    while True:
        i = min(range(len(streams)), key=lambda j: asked[j] / streams[j][0])
        item = next(streams[i][1])
        asked[i] += len(item.questions)
        yield item
