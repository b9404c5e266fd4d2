"""Compositional questions of the AV world: counts over both senses, order between them, several answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.audio.synth import PITCHES
from mmreason.data.worlds.av.primitives import LEAST
from mmreason.data.worlds.av.scenes import VERBS, Heard, Scene
from mmreason.data.worlds.av.words import told
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought
from mmreason.data.worlds.video.physics import Event
from mmreason.data.worlds.video.words import found, moments, up_to
from mmreason.data.worlds.video.words import told as told_event

Rng = np.random.Generator
MIDDLE = 5  # the moment with as much room before as after, so that it alone tells nothing of a count
SHOWN = 3  # options of a question with several answers
SIDES: dict[str, Callable[[int, int], bool]] = {"before": int.__lt__, "after": int.__gt__}


def _name(x: Event | Heard) -> str:
    """How a question calls it: "the bell", "red star flashed"."""
    return f"the {x.kind}" if isinstance(x, Heard) else x.phrase


def _found(x: Event | Heard) -> str:
    """When it is, by the words of a question: "bell 3", "red star flashed 5"."""
    return found(x.kind if isinstance(x, Heard) else x.phrase, [x])


def _told(x: Event | Heard) -> str:
    return told(x) if isinstance(x, Heard) else told_event(x)


def sum_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Both counts; every pair of them comes equally often, so that neither tells the other."""
    n, m = len(scene.events), len(scene.sounds)
    return [Candidate("sum", "", (n, m), ())]


def sum_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What is seen to happen and what is heard, in all."""
    n, m = len(scene.events), len(scene.sounds)
    counts = f"seen {n}, heard {m}"
    thought = Thought(
        "count seen and heard, add", counts, f"{n} + {m} = {n + m}", f"{counts}, {n} + {m} = {n + m}"
    )
    text = pick(("how many things and sounds in all?", "add the things and the sounds."), rng)
    return Draft(text, "numeric", (str(n + m),), thought, marks=(*scene.events, *scene.sounds))


def before_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Events on one side of a sound, and sounds on one side of an event, of two or three that could be."""
    pairs: list[tuple[str, Sequence[Event | Heard], Event | Heard]] = [
        *((f"things {verb}", scene.clip.did(verb), sound) for verb in VERBS for sound in scene.sounds),
        *(("sounds", scene.sounds, event) for event in scene.events),
    ]
    offers = []
    for what, items, pivot in pairs:
        for side, on in SIDES.items():
            right = tuple(x for x in items if on(x.moment, pivot.moment))
            group = f"{what.split()[0]} {len(items)}"  # what one sense knows
            if len(items) in (2, 3) and pivot.moment == MIDDLE:
                offers.append(Candidate("before", group, len(right), (what, items, pivot, side, right)))
    return offers


def before_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """A count on one side of a moment that the other sense gives."""
    what, items, pivot, side, right = candidate.args
    caption = f"{_found(pivot)}, {found(what.split()[-1], items)}"
    said = f"{side} {pivot.moment} is {moments(right)}, {up_to(len(right))}"
    thought = Thought(f"find {_name(pivot)}, count {what} {side}", caption, said, f"{caption}, {said}")
    ask = f"{what} {side} {_name(pivot)}"
    text = pick((f"how many {ask}?", f"count the {ask}."), rng)
    return Draft(text, "numeric", (str(len(right)),), thought, marks=(pivot, *right))


def together_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """How many events have a sound, classed by what either sense knows."""
    n, m = len(scene.events), len(scene.sounds)
    return [Candidate("together", str(min(n, m)), len(scene.together), ())] if min(n, m) in (2, 3) else []


def _pairs(pairs: Sequence[tuple[Event, Heard]]) -> str:
    """Events with their sounds: "3 red star flashed bell, 5 blue circle moved left ba"."""
    return ", ".join(f"{told_event(event)} {sound.name}" for event, sound in pairs) or "none"


def together_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The number of moments at which something is seen to happen and heard."""
    pairs = scene.together
    caption = _pairs(pairs)
    thought = Thought("find events with a sound", caption, up_to(len(pairs)), f"{caption}, so {len(pairs)}")
    text = pick(("how many events had a sound?", "count the events that had a sound."), rng)
    return Draft(text, "numeric", (str(len(pairs)),), thought, marks=tuple(x for pair in pairs for x in pair))


def _subsets(
    kind: str, pairs: Sequence[tuple[Event, Heard]], scene: Scene, args: tuple[str, ...], rng: Rng
) -> list[Candidate]:
    """k events of `pairs` beside others, for every k; the weights make every subset equally often right."""
    others = [event for event in scene.events if all(event != e for e, _ in pairs)]
    return [
        Candidate(
            kind,
            "",
            k,
            (*args, shuffled(pairs, rng)[:k], shuffled(others, rng)[: SHOWN - k]),
            weight=comb(SHOWN, k),
        )
        for k in range(1, SHOWN + 1)
        if len(pairs) >= k and len(others) >= SHOWN - k
    ]


def _which(what: str, scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    *_, pairs, others = candidate.args
    sounds = {sound.moment: sound.name for sound in scene.sounds}
    shown = shuffled([*(event for event, _ in pairs), *others], rng)
    options = tuple(event.phrase for event in shown)
    there = sorted(pairs, key=lambda pair: options.index(pair[0].phrase))
    right = tuple(event.phrase for event, _ in there)
    caption = ", ".join(f"{_found(event)} {sounds.get(event.moment, 'none')}" for event in shown)
    said = ", ".join(right)
    thought = Thought(f"find {what} for each", caption, f"{len(right)} of {SHOWN}", f"{caption}, so {said}")
    text = pick((f"which of these had {what}?", f"at which of these did you hear {what}?"), rng)
    marks = tuple(x for pair in there for x in pair)
    return Draft(text, "multi_choice", right, thought, options, marks)


def which_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Which of three events have a sound, where there are several sounds."""
    return _subsets("which", scene.together, scene, (), rng) if len(scene.sounds) >= 2 else []


def which_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of the events have a sound."""
    return _which("a sound", scene, candidate, rng)


def pitch_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Which of three events have a sound of one pitch, where two sounds or more have it."""
    offers = []
    for pitch in PITCHES:
        if sum(sound.pitch == pitch for sound in scene.sounds) >= 2:
            pairs = [pair for pair in scene.together if pair[1].pitch == pitch]
            offers += _subsets("pitch", pairs, scene, (pitch,), rng)
    return offers


def pitch_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of the events have a low, a middle or a high sound."""
    return _which(f"a {candidate.args[0]} sound", scene, candidate, rng)


def _after(
    what: str, items: Sequence[Event | Heard], pivots: Sequence[Event | Heard], rng: Rng
) -> list[Candidate]:
    """What comes first after a moment, among three; classed by its place among the three in time."""
    offers = []
    for pivot in pivots:
        later = [x for x in items if x.moment > pivot.moment]
        others = [x for x in items if x not in later[:1]]
        if later and len(others) >= LEAST - 1:
            shown = (later[0], *shuffled(others, rng)[: LEAST - 1])
            place = sum(x.moment < later[0].moment for x in shown)
            offers.append(Candidate("next", what, place, (what, pivot, shown)))
    return offers


def next_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Events after a sound, and sounds after an event."""
    return _after("things", scene.events, scene.sounds, rng) + _after(
        "sounds", scene.sounds, scene.events, rng
    )


def next_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What one sense has first after a moment that the other gives."""
    what, pivot, shown = candidate.args
    label = {x: x.name if isinstance(x, Heard) else x.phrase for x in shown}
    right, choices = label[shown[0]], shuffled(shown, rng)
    caption = f"{_found(pivot)}, {', '.join(found(label[x], [x]) for x in choices)}"
    thought = Thought(
        f"find {_name(pivot)}", caption, f"after {pivot.moment} {_told(shown[0])}", f"{caption}, so {right}"
    )
    verb = "happened" if what == "things" else "was heard"
    texts = (f"what {verb} first after {_name(pivot)}?", f"which of these {verb} first after {_name(pivot)}?")
    options = tuple(label[x] for x in choices)
    return Draft(pick(texts, rng), "single_choice", (right,), thought, options, (pivot, shown[0]))


KINDS: tuple[Kind[Scene], ...] = (
    Kind("sum", 0.5, sum_offers, sum_ask),
    Kind("before", 0.8, before_offers, before_ask),
    Kind("together", 0.7, together_offers, together_ask),
    Kind("next", 0.7, next_offers, next_ask),
    Kind("which", 0.9, which_offers, which_ask),
    Kind("pitch", 1.0, pitch_offers, pitch_ask),
)
