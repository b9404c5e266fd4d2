"""Scenes of the video world: one to four things and what they do, and which split a scene belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmreason.data.worlds.image.scenes import COLOURS, SHAPES, SIDE, TEST_SHARE
from mmreason.data.worlds.video.physics import MOMENTS, STEPS, VERBS, WAYS, Actor, Clip, Undecided, simulate

Rng = np.random.Generator
MOST_THINGS = 4
MOST_ENTRIES = 6  # of the list of what happened
HIT_SHARE = 0.4  # of the scenes of two things or more, an attempt at a hit
PARADE_SHARE = 0.2  # of the rest, all that moves goes the same way
UNEVEN = 0.5  # concentration of the shares of verbs and ways within a scene


def split_of(clip: Clip) -> str:
    """The one split that may show this clip, decided by what is seen at every moment."""
    seen = sorted(
        f"{a.shape}:" + ",".join(f"{k.cell}{k.colour}{'!' * k.flash}" if k else "" for k in track)
        for a, track in zip(clip.actors, clip.tracks, strict=True)
    )
    return "test" if hashlib.sha256(";".join(seen).encode()).digest()[0] % TEST_SHARE == 0 else "train"


def draw_things(n: int, rng: Rng) -> list[Actor]:
    """n things of different names in different cells, which do nothing yet."""
    cells = rng.permutation(SIDE * SIDE)[:n]
    names = rng.permutation(len(COLOURS) * len(SHAPES))[:n]
    return [
        Actor(int(cell) // SIDE + 1, int(cell) % SIDE + 1, COLOURS[name // 4], SHAPES[name % 4])
        for cell, name in zip(cells, names, strict=True)
    ]


def uneven(words: Sequence[str], n: int, concentration: float, rng: Rng) -> list[str]:
    """n of the words by shares drawn anew: the lower the concentration, the more often one of them prevails."""
    edges = np.cumsum(rng.standard_gamma(concentration, size=len(words)))
    return [words[i] for i in np.searchsorted(edges, rng.random(n) * edges[-1], side="right")]


def act(actor: Actor, verb: str, moment: int, way: str, rng: Rng) -> Actor:
    """The thing with one more thing to do; `way` is used by moves only."""
    if verb == "moved":
        return replace(actor, moves=(way, moment))
    if verb == "appeared":
        return replace(actor, appears=moment)
    if verb == "vanished":
        return replace(actor, vanishes=moment)
    if verb == "turned":
        others = [c for c in COLOURS if c != actor.colour]
        return replace(actor, turns=(others[int(rng.integers(len(others)))], moment))
    if verb == "flashed":
        return replace(actor, flashes=(*actor.flashes, moment))
    return actor


def _hit(first: Actor, second: Actor, way: str, moment: int, rng: Rng) -> tuple[Actor, Actor]:
    """Both on one line: the first sets off and finds the second two cells on, with room behind it."""
    line = int(rng.integers(1, SIDE + 1))
    rows, columns = STEPS[way]
    near, far = (1, 3) if rows + columns > 0 else (4, 2)
    first = replace(first, moves=(way, moment))
    if rows:
        return replace(first, row=near, column=line), replace(second, row=far, column=line)
    return replace(first, row=line, column=near), replace(second, row=line, column=far)


def _attempt(size: int, rng: Rng) -> list[Actor]:
    """Things with about `size` entries in the list of what happened; it may turn out to be impossible."""
    n = int(rng.integers((size + 1) // 2, min(MOST_THINGS, size) + 1))
    things = draw_things(n, rng)
    verbs, ways = uneven(VERBS, 2 * n, UNEVEN, rng), uneven(WAYS, n, UNEVEN, rng)
    free = [int(m) + 2 for m in rng.permutation(MOMENTS - 1)]
    idle, extra = 0, size - n  # things that have their part already; second things to do
    if n >= 2 and size >= 3 and rng.random() < HIT_SHARE:
        things[:2] = _hit(things[0], things[1], ways[0], free.pop(), rng)
        idle, extra = 2, extra - 1
    elif rng.random() < PARADE_SHARE:
        verbs[:n], ways = ["moved"] * n, [ways[0]] * n
    for i in range(idle, n):
        things[i] = act(things[i], verbs[i], free.pop(), ways[i], rng)
    for i in rng.permutation(n)[: max(extra, 0)]:
        if free:
            things[i] = act(things[i], verbs[n + i], free.pop(), ways[i], rng)
    return things


def is_clear(clip: Clip) -> bool:
    """Whether every event can be seen and told apart.

    Only a hit and the move it makes share a moment; no thing does the same twice, or anything while it is not
    there; and none comes to look like another.
    """
    told = [e.moment for e in clip.events if not e.pushed]
    done = [(e.name, e.verb) for e in clip.events]
    looks = [f"{c} {a.shape}" for a in clip.actors for c in {a.colour, (a.turns or (a.colour,))[0]}]
    if any(len(set(items)) < len(items) for items in (told, done, looks)):
        return False
    there = {a.name: (a.appears, a.vanishes) for a in clip.actors}
    return all(
        (e.verb == "appeared" or e.moment > there[e.name][0] or there[e.name][0] == 1)
        and (e.verb == "vanished" or max(e.moment, e.until) < there[e.name][1])
        for e in clip.events
    )


def draw_clip(sizes: Sequence[int], split: str, rng: Rng) -> Clip:
    """A clip of one of these sizes (entries of the list of what happened) that belongs to `split`."""
    size = sizes[int(rng.integers(len(sizes)))]
    while True:
        try:
            clip = simulate(_attempt(size, rng))
        except Undecided:
            continue
        if len(clip.entries) == size and is_clear(clip) and split_of(clip) == split:
            return clip
