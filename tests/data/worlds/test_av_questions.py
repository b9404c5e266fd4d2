"""The AV world's answers, recomputed from the list of what is seen and heard; neither text nor one sense suffices."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import pytest

from mmreason.data.worlds import av as world
from mmreason.data.worlds import make_world
from mmreason.data.worlds.av import GROUPS, KINDS
from tests.data.worlds.text_only import Row, accuracy_of, chance_of, stem_of, text_of

NAME = r"(?:red|green|blue|yellow) (?:circle|square|triangle|star)"
EVENT = rf"{NAME} (?:flashed|appeared|vanished|turned \w+|moved \w+)"
SOUND = r"(?:beep|horn|bell|click|ba|di|gu|sho)"
MARGIN = (
    0.1  # sampling noise of 120 to 400 test rows a kind (one standard error: 0.02 to 0.04), and little more
)
Made = dict[str, dict[str, list[tuple[Row, "Truth"]]]]


@dataclass(frozen=True)
class Truth:
    """What is seen and what is heard, each with its moment, as the thought lists it."""

    seen: dict[str, int]
    heard: dict[str, int]

    def both(self) -> dict[str, int]:
        return self.seen | self.heard

    def kind(self, word: str) -> str:
        """The full name of the one sound of a kind."""
        return next(name for name in self.heard if name.split()[-1] == word)


def _read(listed: str) -> Truth:
    entries = [entry.split(" ", 1) for entry in listed.split(", ")]
    assert all(re.fullmatch(rf"{EVENT}|(?:\w+ )?{SOUND}", what) for _, what in entries), listed
    seen = {what: int(m) for m, what in entries if re.fullmatch(EVENT, what)}
    return Truth(seen, {what: int(m) for m, what in entries if what not in seen})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """split -> kind -> rows with what their thoughts list; the films are left empty, since nobody looks."""
    rows: Made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "draw_frames", lambda *_: None)
        patch.setattr(world, "sound", lambda *_: None)
        patch.setattr(world, "mp4_bytes", lambda *_: b"")
        for split, count in (("train", 7000), ("test", 4000)):
            path = make_world("av", tmp_path_factory.mktemp("av") / split, count=count, seed=11, split=split)
            rows[split] = defaultdict(list)
            for line in path.read_text().splitlines():
                row = json.loads(line)
                caption = re.search("<caption>(.+)</caption>", row["rationale"]["structured"])
                assert caption
                rows[split][row["kind"]].append((row, _read(caption[1])))
    yield rows


def _pivot(stem: str, truth: Truth) -> int:
    """The moment that a question names: an event, or the one sound of a kind."""
    event = re.search(EVENT, stem)
    word = re.search(rf"the ({SOUND})\b", stem)
    return truth.seen[event[0]] if event else truth.heard[truth.kind(word[1])]  # type: ignore[index]


def _sounds_with(stem: str, truth: Truth) -> set[int]:
    pitch = re.search("(low|middle|high) sound", stem)
    return {m for name, m in truth.heard.items() if pitch is None or name.startswith(pitch[1])}


def _oracle(row: Row, truth: Truth) -> set[str]:
    """The right answer, or answers, from the words of the question and the two lists."""
    kind, stem = row["kind"], stem_of(row).rstrip(".?")
    if kind == "list":
        return {row["solution"]}
    if kind == "sum":
        return {str(len(truth.both()))}
    if kind in ("which", "pitch"):
        return {o for o in row["options"] if truth.seen[o] in _sounds_with(stem, truth)}
    if kind == "together":
        return {str(len(set(truth.seen.values()) & set(truth.heard.values())))}
    at = _pivot(stem, truth)
    if kind == "next":
        return {min((m, o) for o in row["options"] if (m := truth.both()[o]) > at)[1]}
    if kind == "before":
        verb = re.search(r"things (\w+)", stem)
        moments = [m for w, m in truth.seen.items() if verb and w.split()[2] == verb[1]]
        moments = moments if verb else list(truth.heard.values())
        return {str(sum(m < at if " before " in stem else m > at for m in moments))}
    there = [what for what, m in (truth.heard if kind == "heard" else truth.seen).items() if m == at]
    assert len(there) == 1
    return {there[0].split()[("colour", "shape").index(kind)] if kind in ("colour", "shape") else there[0]}


def test_an_independent_reader_agrees_with_every_solution(made: Made) -> None:
    for kind, rows in made["test"].items():
        assert len(rows) >= 100, kind
        for row, truth in rows:
            said = set(row["solution"].split(", ")) if row["options"] else {row["solution"]}
            assert said == _oracle(row, truth), (row["id"], text_of(row))
    assert made["test"].keys() == KINDS.keys() == {k for kinds in GROUPS.values() for k in kinds}


def test_a_sound_track_a_second_late_changes_most_answers(made: Made) -> None:
    for kind, rows in made["test"].items():
        if kind not in ("list", "sum"):
            wrong = 0
            for row, truth in rows:
                late = Truth(truth.seen, {name: m + 2 for name, m in truth.heard.items()})
                try:
                    wrong += _oracle(row, late) != set(row["solution"].split(", "))
                except (AssertionError, ValueError):  # nothing is heard, or seen, when it should be
                    wrong += 1
            assert wrong > 0.35 * len(rows), (kind, wrong / len(rows))


def test_kinds_are_asked_about_and_thoughts_are_short(made: Made) -> None:
    sizes = {kind: len(rows) for kind, rows in made["train"].items()}
    assert max(sizes.values()) <= 3 * min(sizes.values()), sizes
    for row, _ in (r for rows in made["test"].values() for r in rows):
        structured = row["rationale"]["structured"]
        assert len(re.findall(r"\w+|[^\w\s]", re.sub("<[^>]+>", " ", structured))) <= 100
        if row["kind"] != "list":
            assert structured.endswith(f"<summary>{row['solution']}</summary>")
            assert row["rationale"]["free"].endswith(row["solution"])


def _named(term: str, truth: Truth) -> list[int]:
    """Moments of what a term names: an event or a sound whole, a kind of sound, a thing to do, all sounds."""
    if term == "sounds":
        return list(truth.heard.values())
    return [m for what, m in truth.both().items() if term in (what, what.split()[-1], *what.split()[2:3])]


def test_thoughts_look_up_what_they_name(made: Made) -> None:
    """The term, then its moments; for `which` and `pitch` also what is heard there: "bell 3", "star flashed 5 none"."""
    found = set()
    for row, truth in (r for rows in made["test"].values() for r in rows):
        reasoning = re.search("<reasoning>(.+)</reasoning>", row["rationale"]["structured"])
        assert reasoning
        heard = {m: name for name, m in truth.heard.items()}
        for said in reasoning[1].split(", "):
            match = re.fullmatch(r"(?!seen|heard|before|after)([a-z ]+?) (\d(?: \d)*)( [a-z ]+)?", said)
            if match:
                moments = _named(match[1], truth)
                assert match[2] == " ".join(map(str, moments)), (row["kind"], said, truth)
                assert match[3] is None or match[3][1:] == heard.get(moments[0], "none"), (said, truth)
                found.add(row["kind"])
    assert found == KINDS.keys() - {"list", "sum", "together"}


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_stays_near_chance(made: Made, kind: str) -> None:
    train, test = ([row for row, _ in made[split][kind]] for split in ("train", "test"))
    accuracy, chance = accuracy_of(train, test), chance_of(test)
    assert (
        chance
        <= {"single_choice": 0.38, "multi_choice": 0.2, "numeric": 0.42, "text": 0.05}[
            test[0]["problem_type"]
        ]
    )
    assert accuracy <= chance + MARGIN, f"{kind}: text alone {accuracy:.3f}, chance {chance:.3f}"


def _place(row: Row, known: dict[str, int]) -> Hashable:
    """The answer as a reader of one sense could hold it.

    Places of the right options in time where it knows their times, else their places among the options; or the
    number.
    """
    if not row["options"]:
        return row["solution"]
    named = dict(known)
    if row["kind"] in ("colour", "shape"):
        i = ("colour", "shape").index(row["kind"])
        named = {what.split()[i]: m for what, m in known.items() if re.fullmatch(EVENT, what)}
    order = (
        sorted(row["options"], key=lambda o: named[o])
        if set(row["options"]) <= named.keys()
        else row["options"]
    )
    return tuple(sorted(order.index(o) for o in row["solution"].split(", ")))


def _eyes(row: Row, truth: Truth) -> Hashable:
    """What the picture tells of a question: counts, and the moment of an event it names."""
    stem = stem_of(row)
    event = re.search(EVENT, stem)
    verb = re.search(r"things (\w+) ", stem)
    several = sum(w.split()[2] == verb[1] for w in truth.seen) if verb else 0
    return len(truth.seen), several, event and truth.seen[event[0]], " before " in stem


def _ears(row: Row, truth: Truth) -> Hashable:
    """What the sound track tells of a question: counts, and the moment of a sound it names."""
    stem = stem_of(row)
    word = re.search(rf"the ({SOUND})\b", stem)
    return (len(truth.heard), len(_sounds_with(stem, truth)), word and truth.heard[truth.kind(word[1])],
            " before " in stem)  # fmt: skip


Sense = tuple[Callable[[Row, Truth], Hashable], Callable[[Truth], dict[str, int]]]
EYES: Sense = (_eyes, lambda truth: truth.seen)
EARS: Sense = (_ears, lambda truth: truth.heard)


def _lookup(train: list[tuple[Row, Truth]], test: list[tuple[Row, Truth]], sense: Sense) -> float:
    """Accuracy of the most frequent answer given what one sense tells."""
    tells, known = sense
    table: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for row, truth in train:
        for key in (tells(row, truth), None):
            table[key][_place(row, known(truth))] += 1
    best = [table.get(tells(row, truth), table[None]).most_common(1)[0][0] for row, truth in test]
    right = sum(b == _place(row, known(truth)) for b, (row, truth) in zip(best, test, strict=True))
    return right / len(test)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"list"}))
def test_one_sense_alone_stays_near_chance(made: Made, kind: str) -> None:
    """Readers that know when everything is seen and nothing of what is heard, and the other way round."""
    train, test = made["train"][kind], made["test"][kind]
    chance = chance_of([row for row, _ in test])
    for name, sense in (("eyes", EYES), ("ears", EARS)):
        accuracy = _lookup(train, test, sense)
        assert accuracy <= chance + MARGIN, f"{kind}: {name} alone {accuracy:.3f}, chance {chance:.3f}"


def test_a_reader_of_both_senses_is_far_above_one(made: Made) -> None:
    """The bound above is no triviality: the same lookup given the coincidence of the two answers most."""
    train, test = made["train"]["together"], made["test"]["together"]
    both: Sense = (lambda _, truth: len(set(truth.seen.values()) & set(truth.heard.values())), Truth.both)
    assert _lookup(train, test, both) == 1.0
