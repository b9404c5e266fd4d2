"""Questions about two clips: what one holds, how much of something both hold, which holds more, what both hold."""

from __future__ import annotations

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.audio.compositional import SAME, choice, sign, subsets, verdict
from mmreason.data.worlds.audio.scenes import KIND_TERMS, PITCH_TERMS, Heard, Scene, Term
from mmreason.data.worlds.audio.words import CLIPS, in_order, places, plural, seen, short
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought

Rng = np.random.Generator
ANY: Term = (None, None)
CLIP_WEIGHTS = {
    1: 0.6,
    2: 1.0,
    3: 0.6,
    4: 0.3,
}  # by the sounds in the clip: one is easily guessed, many are rare
TOTAL_WEIGHTS = {  # more are rare
    "kind": {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 0.5},
    "pitch": {1: 1.0, 2: 1.0, 3: 1.0},
}
MOST_SHARED = 2  # right answers of a `both` question: three kinds in both clips are rare
ASKED: dict[str, tuple[Term, ...]] = {"kind": KIND_TERMS, "pitch": PITCH_TERMS, "any": (ANY,)}


def clip_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """One of the two clips, classed by how much it holds, so that no short list becomes a good guess."""
    i = int(rng.integers(len(scene.clips)))
    n = len(scene.clips[i])
    return [Candidate("clip", "", n, (i,), weight=CLIP_WEIGHTS[n])]


def clip_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The list of one of two clips."""
    which = CLIPS[candidate.args[0]]
    sounds = scene.clips[candidate.args[0]]
    found = in_order(sounds)
    thought = Thought(
        f"listen to {which}", f"{which} {found}", f"{len(sounds)} in {which}", f"{which} {found}"
    )
    text = pick((f"list the sounds of the {which} clip.", f"what is in the {which} clip?"), rng)
    return Draft(text, "text", (found,), thought, marks=sounds)


def _what(term: Term) -> str:
    return short(term) or "sound"


def _marks(scene: Scene, term: Term) -> tuple[Heard, ...]:
    return scene.find(term, 0) + scene.find(term, 1)


def _in_each(scene: Scene, term: Term) -> str:
    """As a caption says it: "beep first 1 3, second none"."""
    return f"{_what(term)} " + ", ".join(
        f"{which} {places(scene.find(term, i))}" for i, which in enumerate(CLIPS)
    )


def _numbers(scene: Scene) -> list[tuple[str, Term, int, int]]:
    """Kinds, pitches and sounds of any sort that at least one clip holds, with their counts in each."""
    found = [(g, t, scene.count(t, 0), scene.count(t, 1)) for g, terms in ASKED.items() for t in terms]
    return [(group, term, n, m) for group, term, n, m in found if n + m]


def clips_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """One comparison of any group, classed by which clip holds more: all of them would crowd out other kinds."""
    one = {group: (term, n, m) for group, term, n, m in shuffled(_numbers(scene), rng)}
    return [
        Candidate("clips", group, verdict(*counts), (term, *counts))
        for group, (term, *counts) in shuffled(list(one.items()), rng)[:1]
    ]


def clips_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which clip holds more of something."""
    term, n, m = candidate.args
    answer = verdict(n, m)
    found, why = _in_each(scene, term), f"{n} {sign(n, m)} {m}"
    thought = Thought(f"count {_what(term)} in each clip", found, why, f"{found}, {why}, so {answer}")
    text = pick(
        (
            f"which clip has more {plural(term)}?",
            f"are there more {plural(term)} in the first clip, the second clip or the same?",
        ),
        rng,
    )
    options = shuffled((*CLIPS, SAME), rng)
    return Draft(text, "single_choice", (answer,), thought, options, _marks(scene, term))


def total_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Kinds and pitches that at least one clip holds."""
    return [
        Candidate("total", group, n + m, (term, n, m), weight=weight)
        for group, term, n, m in _numbers(scene)
        if (weight := TOTAL_WEIGHTS.get(group, {}).get(n + m))
    ]


def total_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """How many of something both clips hold together."""
    term, n, m = candidate.args
    found, why = _in_each(scene, term), f"{n} + {m} = {n + m}"
    thought = Thought(f"count {short(term)} in each clip, add", found, why, f"{found}, {why}")
    text = pick((f"how many {plural(term)} in both clips?", f"add the {plural(term)} of both clips."), rng)
    return Draft(text, "numeric", (str(n + m),), thought, marks=_marks(scene, term))


def both_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Four kinds, k of them in both clips."""
    counts = [(term, scene.count(term, 0), scene.count(term, 1)) for term in KIND_TERMS]
    right = [term for term, n, m in counts if n and m]
    wrong = [term for term, n, m in counts if not (n and m)]
    return subsets("both", "", scene, right, wrong, (), rng)[:MOST_SHARED]


def both_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four kinds are in both clips."""
    terms, chosen = candidate.args
    found = ", ".join(f"{which} {seen(scene, terms, i)}" for i, which in enumerate(CLIPS))
    thought = ("find each option in each clip", found, f"{len(chosen)} in both")
    text = pick(("which of these are in both clips?", "which of these do both clips have?"), rng)
    shown = [term for term in terms if term in chosen]
    sounds = tuple(s for term in shown for i in range(2) for s in scene.find(term, i))
    return choice(text, candidate, thought, sounds)


PRIMITIVES = (Kind("clip", 0.3, clip_offers, clip_ask),)
COMPOSITIONAL = (
    Kind("total", 0.7, total_offers, total_ask),
    Kind("clips", 0.8, clips_offers, clips_ask),
    Kind("both", 1.0, both_offers, both_ask),
)
