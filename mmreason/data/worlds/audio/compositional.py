"""Compositional questions about one clip: several sounds, then a sum, an order, a comparison or several answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np

from mmreason.data.worlds.asking import Draft, Kind, pick, shuffled
from mmreason.data.worlds.audio.primitives import names_of
from mmreason.data.worlds.audio.scenes import KIND_TERMS, PITCH_TERMS, TERMS, Heard, Scene, Term
from mmreason.data.worlds.audio.synth import LOUDS, PITCHES
from mmreason.data.worlds.audio.words import (
    counted,
    in_order,
    looked_up,
    plural,
    seen,
    short,
    singular,
    with_loudness,
)
from mmreason.data.worlds.balance import Candidate
from mmreason.data.worlds.rows import Thought

Rng = np.random.Generator
PAIRS: dict[str, tuple[tuple[Term, Term], ...]] = {
    # names of one kind: were others mixed in, names alike in a word would more often be equally frequent
    "name": tuple((a, b) for a, b in combinations(TERMS["name"], 2) if a[1] == b[1]),
    "kind": tuple(combinations(TERMS["kind"], 2)),
    "pitch": tuple(combinations(TERMS["pitch"], 2)),
}
SAME = "same"
SHOWN = 4  # options of a question that shows some of the eight kinds
NEIGHBOUR_ALIKE = 1.5  # share of neighbours of one kind; another kind's is its number of names


def verdict(n: int, m: int) -> str:
    """Which of two numbers is more: "first", "second" or "same"."""
    return "first" if n > m else "second" if m > n else SAME


def sign(n: int, m: int) -> str:
    """ ">", "<" or "="."""
    return ">" if n > m else "<" if n < m else "="


def _pairs(scene: Scene, rng: Rng) -> list[tuple[str, Term, Term, int, int]]:
    """Pairs of terms of one group, in some order, of which at least one sound is heard, with their counts."""
    found = []
    for group, pairs in PAIRS.items():
        numbers = {term: scene.count(term) for term in TERMS[group]}
        flips = rng.random(len(pairs)) < 0.5
        for (a, b), flip in zip(pairs, flips, strict=True):
            if numbers[a] + numbers[b]:
                one, two = (b, a) if flip else (a, b)
                found.append((group, one, two, numbers[one], numbers[two]))
    return found


def sum_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group, of which at least one sound is heard."""
    return [Candidate("sum", group, n + m, (a, b)) for group, a, b, n, m in _pairs(scene, rng)]


def _calculate(
    scene: Scene, a: Term, b: Term, verb: str, result: str, texts: tuple[str, ...], rng: Rng
) -> Draft:
    """Two counts, then one line of arithmetic that ends in the answer."""
    found = seen(scene, (a, b))
    answer = result.split()[-1]
    thought = Thought(f"count {short(a)} and {short(b)}, {verb}", found, result, f"{found}, {result}")
    return Draft(pick(texts, rng), "numeric", (answer,), thought, marks=scene.find(a) + scene.find(b))


def sum_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Two counts added."""
    a, b = candidate.args
    n, m = scene.count(a), scene.count(b)
    texts = (f"how many {plural(a)} and {plural(b)} in all?", f"add the {plural(a)} and the {plural(b)}.")
    return _calculate(scene, a, b, "add", f"{n} + {m} = {n + m}", texts, rng)


def difference_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group; the answer is never negative because the larger count is named first."""
    ordered = [(g, a, b, n, m) if n >= m else (g, b, a, m, n) for g, a, b, n, m in _pairs(scene, rng)]
    return [Candidate("difference", group, n - m, (a, b)) for group, a, b, n, m in ordered]


def difference_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """One count taken from another."""
    a, b = candidate.args
    n, m = scene.count(a), scene.count(b)
    texts = (
        f"how many more {plural(a)} than {plural(b)}?",
        f"take the {plural(b)} from the {plural(a)}.",
    )
    return _calculate(scene, a, b, "subtract", f"{n} - {m} = {n - m}", texts, rng)


def more_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two terms of one group, classed by whether the first, the second or neither is more."""
    return [Candidate("more", group, verdict(n, m), (a, b)) for group, a, b, n, m in _pairs(scene, rng)]


def more_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Two counts compared: three options."""
    a, b = candidate.args
    n, m = scene.count(a), scene.count(b)
    options = {"first": plural(a), "second": plural(b), SAME: SAME}
    answer = options[verdict(n, m)]
    found, why = seen(scene, (a, b)), f"{n} {sign(n, m)} {m}"
    thought = Thought(f"count {short(a)} and {short(b)}", found, why, f"{found}, {why}, so {answer}")
    text = pick(
        (
            f"are there more {plural(a)}, more {plural(b)} or the same?",
            f"which is more, {plural(a)} or {plural(b)}?",
        ),
        rng,
    )
    sounds = scene.find(a) + scene.find(b)
    return Draft(text, "single_choice", (answer,), thought, shuffled(tuple(options.values()), rng), sounds)


def _compare_offers(
    kind: str, scene: Scene, attribute: str, words: tuple[str, ...], rng: Rng
) -> list[Candidate]:
    """Two sounds that have the attribute, named by a kind heard once or by their places."""
    named = [(f"the {singular(term)}", sound) for term, sound in scene.once("kind").items()]
    numbered = [(f"sound {sound.place}", sound) for sound in scene.clips[0]]
    offers = []
    for group, sounds in (("kind", named), ("place", numbered)):
        able = [(what, sound) for what, sound in sounds if getattr(sound, attribute)]
        for one, two in combinations(able, 2):
            a, b = (one, two) if rng.random() < 0.5 else (two, one)
            n, m = (words.index(getattr(sound, attribute)) for _, sound in (a, b))
            offers.append(Candidate(kind, group, verdict(n, m), (a, b)))
    return offers


def _compare_ask(
    candidate: Candidate, question: str, said: tuple[str, str], words: tuple[str, str], rng: Rng
) -> Draft:
    """`said`: what a thought notices of either sound beyond its name."""
    (one, a), (two, b) = candidate.args
    names = [what.removeprefix("the ") for what in (one, two)]
    captions = [
        f"{looked_up(names[0], a)} {said[0]}".rstrip(),
        f"{looked_up(names[1], b)} {said[1]}".rstrip(),
    ]
    options = {"first": names[0], "second": names[1], SAME: SAME}
    answer = options[str(candidate.answer)]
    mark = {"first": ">", "second": "<", SAME: "="}[str(candidate.answer)]
    found, why = ", ".join(captions), f"{words[0]} {mark} {words[1]}"
    thought = Thought(f"find {names[0]} and {names[1]}", found, why, f"{found}, {why}, so {answer}")
    text = pick((f"which is {question}, {one} or {two}?", f"is {one} or {two} {question}, or the same?"), rng)
    return Draft(text, "single_choice", (answer,), thought, shuffled(tuple(options.values()), rng), (a, b))


def higher_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two tones."""
    return _compare_offers("higher", scene, "pitch", PITCHES, rng)


def higher_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of two tones is higher."""
    a, b = (sound for _, sound in candidate.args)
    return _compare_ask(candidate, "higher", ("", ""), (a.pitch, b.pitch), rng)


def louder_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Two sounds."""
    return _compare_offers("louder", scene, "loud", LOUDS, rng)


def louder_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of two sounds is louder; the thought begins with how loud each is."""
    a, b = (sound for _, sound in candidate.args)
    draft = _compare_ask(candidate, "louder", (a.loud, b.loud), (a.loud, b.loud), rng)
    return replace(draft, noticed=with_loudness(scene.clips[0]))


def _alone(scene: Scene) -> list[Heard]:
    """Sounds whose full name is heard once, in order."""
    names = [sound.name for sound in scene.clips[0]]
    return [sound for sound in scene.clips[0] if names.count(sound.name) == 1]


def order_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Three sounds of names heard once; any of them is as likely to be the first, so their names need no balance."""
    return [
        Candidate("order", "", which, (which, sound, sounds))
        for sounds in combinations(_alone(scene), 3)
        for which, sound in (("first", sounds[0]), ("last", sounds[-1]))
    ]


def order_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of three sounds comes first, or last."""
    which, sound, sounds = candidate.args
    shown = shuffled(sounds, rng)
    found = ", ".join(f"{s.name} {s.place}" for s in shown)
    why = f"{which} of {' '.join(str(s.place) for s in shown)} is {sound.place}"
    thought = Thought("find each option", found, why, f"{found}, {why}, so {sound.name}")
    text = pick((f"which of these comes {which}?", f"which of these do you hear {which}?"), rng)
    return Draft(text, "single_choice", (sound.name,), thought, tuple(s.name for s in shown), tuple(shown))


def next_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Neighbours of a sound whose name is heard once; neighbours of its own kind are held to their share."""
    clip = scene.clips[0]
    offers = []
    for sound in _alone(scene):
        for how, step in (("after", 1), ("before", -1)):
            if 1 <= sound.place + step <= len(clip):
                found = clip[sound.place + step - 1]
                alike = found.kind == sound.kind
                answer, weight = ("alike", NEIGHBOUR_ALIKE) if alike else (found.kind, names_of(found.kind))
                offers.append(Candidate("next", how, answer, (how, sound, found), weight))
    return offers


def next_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """What is heard right after, or right before, a sound."""
    how, sound, found = candidate.args
    caption = f"{sound.name} {sound.place}"
    step = f"{sound.place} {'+' if how == 'after' else '-'} 1 = {found.place}, {in_order([found])}"
    thought = Thought(f"find {sound.name}", caption, step, f"{caption}, {step}")
    text = pick(
        (f"what comes right {how} the {sound.name}?", f"which sound is right {how} the {sound.name}?"), rng
    )
    return Draft(text, "text", (found.name,), thought, marks=(sound, found))


def most_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """The kind, and the pitch, that no other equals in number; kinds stand beside three others."""
    offers = []
    for group, terms in (("kind", KIND_TERMS), ("pitch", PITCH_TERMS)):
        ranked = sorted(((scene.count(term), i) for i, term in enumerate(terms)), reverse=True)
        if ranked[0][0] > ranked[1][0]:
            best = terms[ranked[0][1]]
            shown = choose(scene, [best], [t for t in terms if t != best], rng)
            offers.append(Candidate("most", group, short(best), (group, best, shown)))
    return offers


def most_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """The most frequent kind or pitch."""
    group, best, terms = candidate.args
    numbers, answer = counted(scene, terms), short(best)
    thought = Thought(f"count each {group}", seen(scene, terms), numbers, f"{numbers}, so {answer}")
    what = "sound" if group == "kind" else "pitch"
    text = pick((f"which {what} is most frequent?", f"which {what} is there most of?"), rng)
    return Draft(text, "single_choice", (answer,), thought, tuple(map(short, terms)), scene.find(best))


def choose(scene: Scene, right: list[Term], wrong: list[Term], rng: Rng) -> tuple[Term, ...]:
    """The right terms among `SHOWN` in a random order; wrong ones that are heard are taken first."""
    heard = [term for term in wrong if any(term in named for named in scene.by_term)]
    rest = [term for term in wrong if term not in heard]
    return shuffled((*right, *shuffled(heard, rng), *shuffled(rest, rng))[:SHOWN], rng)


def subsets(
    kind: str,
    group: str,
    scene: Scene,
    right: list[Term],
    wrong: list[Term],
    rest: tuple[object, ...],
    rng: Rng,
) -> list[Candidate]:
    """Offers of k right options among `SHOWN`; the weights make every subset of options equally often right."""
    offers = []
    for k in range(1, min(SHOWN, len(right)) + 1):
        chosen = list(shuffled(right, rng)[:k])
        if len(wrong) >= SHOWN - k:
            terms = choose(scene, chosen, wrong, rng)
            offers.append(Candidate(kind, group, k, (terms, tuple(chosen), *rest), weight=comb(SHOWN, k)))
    return offers


def _split(terms: tuple[Term, ...], right: set[Term]) -> tuple[list[Term], list[Term]]:
    return [t for t in terms if t in right], [t for t in terms if t not in right]


def choice(
    text: str, candidate: Candidate, thought: tuple[str, str, str], sounds: tuple[Heard, ...]
) -> Draft:
    """A question with several right answers, in the order the options are shown."""
    terms, chosen, *_ = candidate.args
    right = tuple(short(term) for term in terms if term in chosen)
    planning, caption, reasoning = thought
    free = f"{caption}, {reasoning}, so {', '.join(right)}"
    return Draft(
        text,
        "multi_choice",
        right,
        Thought(planning, caption, reasoning, free),
        tuple(map(short, terms)),
        sounds,
    )


def which_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Four kinds, k of them heard."""
    right, wrong = _split(KIND_TERMS, {t for t in KIND_TERMS if scene.count(t)})
    return subsets("which", "", scene, right, wrong, (), rng)


def which_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four kinds are heard."""
    terms, chosen = candidate.args
    thought = ("find each option", seen(scene, terms), f"{len(chosen)} of {SHOWN}")
    text = pick(("which of these do you hear?", "which of these are there?"), rng)
    return choice(text, candidate, thought, tuple(s for term in terms for s in scene.find(term)))


def twice_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """Four kinds, k of them heard at least twice."""
    right, wrong = _split(KIND_TERMS, {t for t in KIND_TERMS if scene.count(t) >= 2})
    return subsets("twice", "", scene, right, wrong, (), rng)


def twice_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four kinds are heard at least twice."""
    terms, chosen = candidate.args
    thought = ("count each option", seen(scene, terms), counted(scene, terms))
    text = pick(("which of these come at least twice?", "which of these come two or more times?"), rng)
    return choice(text, candidate, thought, tuple(s for term in chosen for s in scene.find(term)))


def _beside(scene: Scene, how: str, term: Term, sound: Heard) -> tuple[Heard, ...]:
    """The sounds of a kind before, or after, one sound."""
    return tuple(s for s in scene.find(term) if (s.place < sound.place) == (how == "before") and s != sound)


def before_offers(scene: Scene, rng: Rng) -> list[Candidate]:
    """A kind heard once, and four others of which k are heard before, or after, it."""
    offers: list[Candidate] = []
    for term, sound in scene.once("kind").items():
        others = tuple(t for t in KIND_TERMS if t != term)
        for how in ("before", "after"):
            right, wrong = _split(others, {t for t in others if _beside(scene, how, t, sound)})
            offers += subsets("before", how, scene, right, wrong, (how, sound), rng)
    return offers


def before_ask(scene: Scene, candidate: Candidate, rng: Rng) -> Draft:
    """Which of four kinds are heard before, or after, a sound."""
    terms, chosen, how, sound = candidate.args
    shown = [t for t in terms if t in chosen]
    why = f"{how} {sound.place} " + ", ".join(
        f"{short(t)} {' '.join(str(s.place) for s in _beside(scene, how, t, sound))}" for t in shown
    )
    thought = (f"find {sound.kind} and each option", f"{sound.kind} {sound.place}, {seen(scene, terms)}", why)
    text = pick(
        (f"which of these come {how} the {sound.kind}?", f"which of these are {how} the {sound.kind}?"), rng
    )
    sounds = (sound, *(s for t in shown for s in _beside(scene, how, t, sound)))
    return choice(text, candidate, thought, sounds)


KINDS = (
    Kind("sum", 0.6, sum_offers, sum_ask),
    Kind("difference", 0.7, difference_offers, difference_ask),
    Kind("more", 0.6, more_offers, more_ask),
    Kind("higher", 0.6, higher_offers, higher_ask),
    Kind("louder", 0.6, louder_offers, louder_ask),
    Kind("next", 0.6, next_offers, next_ask),
    Kind("order", 0.7, order_offers, order_ask),
    Kind("most", 0.8, most_offers, most_ask),
    Kind("which", 0.8, which_offers, which_ask),
    Kind("twice", 1.0, twice_offers, twice_ask),
    Kind("before", 1.0, before_offers, before_ask),
)
