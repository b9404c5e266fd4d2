"""The audio world's truth: hand-written answers for one scene, and an independent reader of the questions."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.data.rows import parse_row
from mmreason.data.worlds import make_world
from mmreason.data.worlds.asking import Draft
from mmreason.data.worlds.audio import ASKERS, GROUPS, KINDS
from mmreason.data.worlds.audio.scenes import Heard, Scene

ONE = Scene(
    (
        (
            Heard(1, "beep", "high", "loud"),
            Heard(2, "bell", "low", "soft"),
            Heard(3, "ba", "", "loud"),
            Heard(4, "beep", "high", "soft"),
            Heard(5, "horn", "low", "soft"),
            Heard(6, "beep", "middle", "loud"),
        ),
    )
)
TWO = Scene(
    (
        (Heard(1, "beep", "high", "loud"), Heard(2, "ba", "", "soft")),
        (Heard(1, "ba", "", "loud", 1), Heard(2, "bell", "low", "loud", 1), Heard(3, "ba", "", "soft", 1)),
    )
)
FIRST = ONE.clips[0]
HIGH, LOW, BEEP, BELL, BA = ("high", None), ("low", None), (None, "beep"), (None, "bell"), (None, "ba")


def _ask(scene: Scene, kind: str, *args: Any) -> Draft:
    """Ask the one question of a kind whose arguments begin with these; pairs of terms may stand in either order."""
    found = {}
    for seed in range(30):
        for c in KINDS[kind].offers(scene, np.random.default_rng(seed)):
            if c.args[: len(args)] == args:
                found[c.answer] = c
    assert len(found) == 1, f"{kind}{args} is offered with answers {sorted(map(str, found))}"
    return KINDS[kind].ask(scene, found.popitem()[1], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("scene", "kind", "args", "answers", "caption", "reasoning"),
    [
        (ONE, "place", ("number", 3), ("ba",), "3 ba", "it is ba"),
        (ONE, "place", ("first", 1), ("high beep",), "1 high beep", "it is high beep"),
        (ONE, "place", ("last", 6), ("middle beep",), "6 middle beep", "it is middle beep"),
        (ONE, "count", (BEEP,), ("3",), "beep 1 4 6", "1 2 3"),
        (ONE, "count", (("low", "beep"),), ("0",), "low beep none", "0"),
        (ONE, "find", (LOW,), ("2 5",), "low 2 5", "2 in all"),
        (ONE, "pitch", (BELL,), ("low",), "bell 2, 2 low bell", "it is low"),
        (ONE, "tone", (("middle", None),), ("beep",), "middle 6, 6 middle beep", "it is beep"),
        (ONE, "loud", ("sound 4", FIRST[3]), ("soft",), "sound 4, 4 high beep soft", "it is soft"),
        (ONE, "loud", ("ba", FIRST[2]), ("loud",), "ba 3, 3 ba loud", "it is loud"),
        (ONE, "sum", (HIGH, LOW), ("4",), "high 1 4, low 2 5", "2 + 2 = 4"),
        (ONE, "difference", (BEEP, BELL), ("2",), "beep 1 4 6, bell 2", "3 - 1 = 2"),
        (ONE, "more", (BEEP, BA), ("beeps",), "beep 1 4 6, ba 3", "3 > 1"),
        (ONE, "more", (BELL, BA), ("same",), "bell 2, ba 3", "1 = 1"),
        (
            ONE,
            "higher",
            (("sound 2", FIRST[1]), ("sound 6", FIRST[5])),
            ("sound 6",),
            "sound 2, 2 low bell, sound 6, 6 middle beep",
            "low < middle",
        ),
        (
            ONE,
            "louder",
            (("the bell", FIRST[1]), ("the ba", FIRST[2])),
            ("ba",),
            "bell 2, 2 low bell soft, ba 3, 3 ba loud",
            "soft < loud",
        ),
        (ONE, "order", ("last", FIRST[5], (FIRST[1], FIRST[2], FIRST[5])), ("middle beep",), None, None),
        (ONE, "next", ("after", FIRST[1]), ("ba",), "low bell 2", "2 + 1 = 3, 3 ba"),
        (ONE, "next", ("before", FIRST[4]), ("high beep",), "low horn 5", "5 - 1 = 4, 4 high beep"),
        (ONE, "most", ("kind",), ("beep",), None, None),
        (TWO, "clip", (1,), ("1 ba, 2 low bell, 3 ba",), "second 1 ba, 2 low bell, 3 ba", "3 in second"),
        (TWO, "clips", (BA,), ("second",), "ba first 2, second 1 3", "1 < 2"),
        (TWO, "clips", (HIGH,), ("first",), "high first 1, second none", "1 > 0"),
        (TWO, "clips", ((None, None),), ("second",), "sound first 1 2, second 1 2 3", "2 < 3"),
        (TWO, "total", (BA,), ("3",), "ba first 2, second 1 3", "1 + 2 = 3"),
        (TWO, "both", (), ("ba",), None, "1 in both"),
    ],
)
def test_hand_written_answers(
    scene: Scene,
    kind: str,
    args: tuple[Any, ...],
    answers: tuple[str, ...],
    caption: str | None,
    reasoning: str | None,
) -> None:
    draft = _ask(scene, kind, *args)
    assert draft.answers == answers
    assert caption in (None, draft.thought.caption)
    assert reasoning in (None, draft.thought.reasoning)


def test_questions_that_need_one_or_a_clear_winner_are_not_offered_otherwise() -> None:
    rng = np.random.default_rng(0)
    assert [c.args for c in KINDS["pitch"].offers(ONE, rng)] == [(BELL, FIRST[1]), ((None, "horn"), FIRST[4])]
    assert [c.group for c in KINDS["most"].offers(ONE, rng)] == ["kind"]  # high 2, low 2, middle 1
    assert not any(c.args[1].name == "high beep" for c in KINDS["next"].offers(ONE, rng))
    assert all("beep" not in str(c.args[3].kind) for c in KINDS["before"].offers(ONE, rng))


def test_difficulty_grows_with_sounds_and_with_the_kind() -> None:
    one, two = ASKERS
    assert one.difficulty(1, "pitch") == 0
    assert one.difficulty(6, "twice") == two.difficulty(5, "both") == pytest.approx(1)
    assert one.difficulty(3, "count") < one.difficulty(4, "count") < one.difficulty(4, "sum")
    assert two.size(TWO) == 4 and one.size(ONE) == 6


def test_groups_name_all_kinds_once() -> None:
    assert sorted(k for kinds in GROUPS.values() for k in kinds) == sorted(KINDS)


# An oracle that knows the words of a question and the dense truth of its clips. It shares no code with the world.
Sound = tuple[str, str]  # name, loudness
HIGHNESS = {"low": 0, "middle": 1, "high": 2}


def _decode(targets: list[dict[str, Any]]) -> list[list[Sound]]:
    """Runs of bins -> the sounds of each clip."""
    clips: dict[int, dict[str, list[str]]] = defaultdict(dict)
    for t in targets:
        clips[t["medium"]][t["name"]] = [t["words"][label] if label >= 0 else "" for label in t["labels"]]
    found = []
    for _, named in sorted(clips.items()):
        bins = list(zip(named["audio/kind"], named["audio/pitch"], named["audio/loud"], strict=True))
        runs = [bin_ for bin_, _ in groupby(bins) if bin_[0] != "silence"]
        found.append([(f"{pitch} {kind}".strip(), loud) for kind, pitch, loud in runs])
    return found


def _places(clip: list[Sound], words: str) -> list[int]:
    wanted = {re.sub("s$", "", w) for w in words.split()} - {"sound", "the"}
    return [i for i, (name, _) in enumerate(clip, start=1) if wanted <= set(name.split())]


TERM = r"(?:(?:low|middle|high) )?(?:beep|horn|bell|click|sound(?! \d))s?\b|\b(?:ba|di|gu|sho)\b"


def _one(clip: list[Sound], words: str) -> Sound:
    numbered = re.fullmatch(r"(?:the )?sound (\d)", words)
    places = [int(numbered[1])] if numbered else _places(clip, words)
    assert len(places) == 1, f"{words} names {len(places)} sounds of {clip}"
    return clip[places[0] - 1]


def _listing(clip: list[Sound]) -> str:
    return ", ".join(f"{i} {name}" for i, (name, _) in enumerate(clip, start=1))


def _compare(a: float, b: float, names: tuple[str, str]) -> str:
    return "same" if a == b else names[0] if a > b else names[1]


def _oracle_two(
    kind: str, stem: str, options: list[str], first: list[Sound], second: list[Sound]
) -> set[str]:
    if kind == "both":
        return {o for o in options if _places(first, o) and _places(second, o)}
    if kind == "clip":
        return {_listing(first if "first" in stem else second)}
    what = re.findall(TERM, stem)[0]
    n, m = len(_places(first, what)), len(_places(second, what))
    return {str(n + m)} if kind == "total" else {_compare(n, m, ("first", "second"))}


def _oracle_sides(kind: str, stem: str, options: list[str], clip: list[Sound]) -> set[str]:
    """Questions about what comes where."""
    if kind == "order":
        place = {o: _places(clip, o) for o in options}
        assert all(len(p) == 1 for p in place.values())
        return {(min if "first" in stem else max)(options, key=lambda o: place[o])}
    anchor = re.findall(TERM, stem)[-1]
    at = _places(clip, anchor)
    assert len(at) == 1
    if kind == "next":
        return {clip[at[0] - 2 if "before" in stem else at[0]][0]}
    sign = -1 if "before" in stem else 1
    return {o for o in options if any((p - at[0]) * sign > 0 for p in _places(clip, o))}


def _oracle(kind: str, text: str, options: list[str], clips: list[list[Sound]]) -> set[str]:
    """The right answer, or answers."""
    stem = text.split(" options:")[0].rstrip(".?")
    if len(clips) == 2:
        return _oracle_two(kind, stem, options, *clips)
    (clip,) = clips
    if kind in ("order", "next", "before"):
        return _oracle_sides(kind, stem, options, clip)
    if kind == "list":
        return {_listing(clip)}
    if kind == "place":
        number = re.search(r"\d", stem)
        return {clip[int(number[0]) - 1 if number else 0 if "first" in stem else -1][0]}
    if kind in ("which", "twice"):
        return {o for o in options if len(_places(clip, o)) >= (1 if kind == "which" else 2)}
    if kind == "most":
        ranked = Counter({o: len(_places(clip, o)) for o in options}).most_common()
        assert ranked[0][1] > ranked[1][1]
        return {ranked[0][0]}
    terms = re.findall(rf"sound \d|{TERM}", stem)
    if kind in ("higher", "louder"):
        (a, loud_a), (b, loud_b) = (_one(clip, t) for t in terms)
        if kind == "louder":
            return {_compare(loud_a == "loud", loud_b == "loud", (terms[0], terms[1]))}
        return {_compare(HIGHNESS[a.split()[0]], HIGHNESS[b.split()[0]], (terms[0], terms[1]))}
    if kind in ("pitch", "tone", "loud"):
        name, loud = _one(clip, terms[0])
        return {loud if kind == "loud" else name.split()[0 if kind == "pitch" else 1]}
    found = [_places(clip, t) for t in terms]
    counts = [len(f) for f in found]
    if kind == "find":
        return {" ".join(map(str, found[0])) or "none"}
    if kind == "more":
        return {_compare(counts[0], counts[1], (terms[0], terms[1]))}
    if kind == "difference":
        return {str(counts[0] - counts[1] if "more" in stem else counts[1] - counts[0])}
    assert kind in ("count", "sum")
    return {str(sum(counts))}


@pytest.fixture(scope="module", params=["named", "lettered"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("world") / "w"
    path = make_world("audio", folder, count=1600, seed=5, split="test", options=request.param)
    return [json.loads(line) for line in path.read_text().splitlines()]


def _text(row: dict[str, Any]) -> str:
    return row["messages"][0]["content"][-1]["text"]


def _said(row: dict[str, Any]) -> set[str]:
    """The solution as a set of answers in words, whatever the style."""
    text = _text(row)
    if " options: A " in text:
        listed = ", ".join(f"{x} {o}" for x, o in zip("ABCD", row["options"], strict=False))
        assert text.endswith(f" options: {listed}")
        return {row["options"]["ABCD".index(letter)] for letter in row["solution"].split(",")}
    if row["options"]:
        assert text.endswith(" options: " + ", ".join(row["options"]))
        return set(row["solution"].split(", "))
    return {row["solution"]}


def test_an_independent_reader_agrees_with_every_solution(made: list[dict[str, Any]]) -> None:
    truth = {r["scene"]: _decode(r["targets"]) for r in made if "targets" in r}
    checked = Counter(row["kind"] for row in made)
    for row in made:
        right = _oracle(row["kind"], _text(row), row["options"], truth[row["scene"]])
        assert _said(row) == right, f"{row['id']} {_text(row)}"
    assert checked.keys() == KINDS.keys() and min(checked.values()) >= 40


def test_a_mutant_of_the_truth_does_not_agree(made: list[dict[str, Any]]) -> None:
    """With the clip played backwards, order and place questions come out otherwise."""
    truth = {r["scene"]: [c[::-1] for c in _decode(r["targets"])] for r in made if "targets" in r}
    for kind in ("list", "place", "order", "before", "find"):
        rows = [r for r in made if r["kind"] == kind]
        agree = sum(_said(r) == _oracle(kind, _text(r), r["options"], truth[r["scene"]]) for r in rows)
        assert agree < 0.6 * len(rows), kind


def test_rationales_list_what_is_heard_and_end_in_the_solution(made: list[dict[str, Any]]) -> None:
    truth = {r["scene"]: _decode(r["targets"]) for r in made if "targets" in r}
    for row in made:
        structured = row["rationale"]["structured"]
        parts = re.fullmatch(
            r"<planning>(.+)</planning><caption>(.+)</caption><reasoning>(.+)</reasoning><summary>(.+)</summary>",
            structured,
        )
        assert parts, structured
        clips = [_listing(clip) for clip in truth[row["scene"]]]
        heard = clips[0] if len(clips) == 1 else f"first {clips[0]}, second {clips[1]}"
        if row["kind"] in ("loud", "louder"):
            (clip,) = truth[row["scene"]]
            heard = ", ".join(f"{i} {name} {loud}" for i, (name, loud) in enumerate(clip, start=1))
        assert parts[2] == heard
        assert len(re.findall(r"\w+|[^\w\s]", " ".join(parts.groups()))) <= 75, structured
        if row["kind"] != "list":
            assert row["rationale"]["free"].endswith(row["solution"])
            assert parts[4].endswith(row["solution"])


def test_evidence_spans_cover_the_bins_of_their_sounds(made: list[dict[str, Any]]) -> None:
    dense = {r["scene"]: r["targets"] for r in made if "targets" in r}
    spans = 0
    for row in made:
        for evidence in row["evidence"]:
            start, end = evidence["span"]
            kind, pitch, _ = (t for t in dense[row["scene"]] if t["medium"] == evidence["medium"])
            middle = int((start + end) / 2 * 10)
            name = kind["words"][kind["labels"][middle]]
            if pitch["labels"][middle] > 0:
                name = f"{pitch['words'][pitch['labels'][middle]]} {name}"
            assert evidence["label"] == name
            assert {kind["labels"][int(t * 10)] for t in (start - 0.1, end + 0.1)} == {0}
            spans += 1
    assert spans > 1600


def test_two_clips_are_two_parts_and_rows_are_read_as_samples(made: list[dict[str, Any]]) -> None:
    for line, row in enumerate(made, start=1):
        sample = parse_row(row, source="audio", line=line, root="/nowhere")
        two = row["kind"] in ("clip", "total", "clips", "both")
        assert [medium.kind for medium in sample.media] == ["audio"] * (2 if two else 1)
        assert len({medium.path for medium in sample.media}) == len(sample.media)
        assert sample.problem_type == row["problem_type"] and sample.options == tuple(row["options"])


def test_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_world("audio", tmp_path / name, count=60, seed=seed, split="train")
    make_world("audio", tmp_path / "long", count=120, seed=7, split="train")
    for file in ("rows.jsonl", "audios-000.zip"):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert one == two != other
    lines = [(tmp_path / name / "rows.jsonl").read_text().splitlines() for name in ("a", "long")]
    assert lines[1][:60] == lines[0] and len(lines[1]) == 120


def test_train_and_test_share_no_list_of_sounds_over_seeds(tmp_path: Path) -> None:
    heard: dict[str, set[str]] = {}
    for split, seed in (("train", 3), ("test", 4)):
        path = make_world("audio", tmp_path / split, count=600, seed=seed, split=split, difficulty=(0, 0.5))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        heard[split] = {_listing(clip) for r in rows if "targets" in r for clip in _decode(r["targets"])}
    assert len(heard["train"]) > 60 and len(heard["test"]) > 20
    assert not heard["train"] & heard["test"]


def test_difficulty_and_kinds_are_kept_and_the_impossible_is_named(tmp_path: Path) -> None:
    make = partial(make_world, "audio", count=80, seed=0, split="train")
    path = make(tmp_path / "w", kinds=["sum", "clips"], difficulty=(0.3, 0.6))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {r["kind"] for r in rows} == {"sum", "clips"}
    assert all(0.3 <= r["difficulty"] <= 0.6 for r in rows)
    with pytest.raises(ValueError, match=r"kinds \['twice'\].*give no question; widen the range"):
        make(tmp_path / "x", kinds=["twice"], difficulty=(0, 0.1))
    with pytest.raises(ValueError, match=r"kinds \['both'\].*give no question; widen the range"):
        make(tmp_path / "x", kinds=["both"], difficulty=(0, 0.1))
