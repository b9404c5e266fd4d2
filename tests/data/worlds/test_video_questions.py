"""The video world's answers, recomputed by an independent reader from the list of what happened and the dense truth."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import pytest

from mmreason.data.worlds import make_world
from mmreason.data.worlds import video as world
from mmreason.data.worlds.video import GROUPS, KINDS
from tests.data.worlds.text_only import Row, text_of

COLOURS, SHAPES = ("", "red", "green", "blue", "yellow"), ("", "circle", "square", "triangle", "star")
NAME = r"(?:red|green|blue|yellow) (?:circle|square|triangle|star)"
VERBS = ("moved", "appeared", "vanished", "turned", "flashed", "stayed")
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
Told = tuple[int, str, str, str]  # moment, name, verb, what


def _read_list(text: str) -> list[Told]:
    """ "3 red star moved left, blue circle stayed" -> [(3, "red star", "moved", "left"), (0, ...)]."""
    told = []
    for entry in text.split(", "):
        match = re.fullmatch(rf"(?:(\d) )?({NAME}) (\w+)(?: (.+))?", entry)
        assert match, entry
        told.append((int(match[1] or 0), match[2], match[3], match[4] or ""))
    return told


def _seen(targets: list[dict[str, Any]], moment: int) -> dict[str, str]:
    """Cell -> name at one moment, from the dense truth."""
    labels = {t["name"]: t["labels"][(moment - 1) * 16 : moment * 16] for t in targets}
    return {
        f"{'abcd'[i // 4]}{i % 4 + 1}": f"{COLOURS[c]} {SHAPES[s]}"
        for i, (c, s) in enumerate(zip(labels["video/colour"], labels["video/shape"], strict=True))
        if c
    }


def _cell_of(name: str, moment: int, told: list[Told], targets: list[dict[str, Any]]) -> str | None:
    """Where a thing is; after it turned it goes by its new colour."""
    turn = next((t for t in told if t[1] == name and t[2] == "turned"), None)
    shown = f"{turn[3]} {name.split()[1]}" if turn and moment >= turn[0] else name
    return next((cell for cell, seen in _seen(targets, moment).items() if seen == shown), None)


def _moves_without(gone: str, told: list[Told], targets: list[dict[str, Any]]) -> set[str]:
    """Who moves, and which way, when one thing was never there: walked cell by cell."""
    names = {t[1] for t in told} - {gone}
    first = {n: next(c for m in range(1, 9) if (c := _cell_of(n, m, told, targets))) for n in names}
    at = {n: ("abcd".index(c[0]) + 1, int(c[1])) for n, c in first.items()}
    there = {n: {m for m in range(1, 9) if _cell_of(n, m, told, targets)} for n in names}
    pushed = {(t[0], t[3]) for t in told if t[2] == "hit"}
    starts = {t[1]: (t[0], t[3]) for t in told if t[2] == "moved" and (t[0], t[1]) not in pushed}
    going: dict[str, str] = {}
    moved = set()
    for moment in range(2, 9):
        going |= {n: way for n, (m, way) in starts.items() if m == moment and n != gone}
        going = {n: way for n, way in going.items() if moment in there[n]}
        for n, way in list(going.items()):
            ahead = (at[n][0] + STEPS[way][0], at[n][1] + STEPS[way][1])
            met = next((o for o in names if o != n and at[o] == ahead and moment in there[o]), None)
            if met or not all(1 <= x <= 4 for x in ahead):
                going.pop(n)
            if met:
                going[met] = way
        for n, way in going.items():
            at[n] = (at[n][0] + STEPS[way][0], at[n][1] + STEPS[way][1])
            moved.add(f"{n} moved {way}")
    return moved


def _phrase(t: Told) -> str:
    return f"{t[1]} {t[2]} {t[3]}".rstrip()


def _oracle(row: Row, told: list[Told], targets: list[dict[str, Any]]) -> set[str]:
    """The right answer, or answers."""
    kind, stem = row["kind"], text_of(row).split(" options:")[0].rstrip(".?")
    names = re.findall(NAME, stem)
    verbs = [v for v in re.findall(r"\w+", stem) if v in VERBS]
    counts = Counter(t[2] for t in told)
    by = {_phrase(t): t for t in told}
    if kind == "count":
        return {str(counts[verbs[0]] if verbs else len({t[1] for t in told}))}
    if kind in ("sum", "difference"):
        a, b = (counts[v] for v in verbs)
        return {str(a + b if kind == "sum" else a - b if "more" in stem else b - a)}
    if kind in ("way", "turned", "did", "when"):
        mine = [t for t in told if t[1] == names[0] and (t[2] == verbs[0] if verbs else True)]
        assert len(mine) == 1
        return {mine[0][2] if kind == "did" else str(mine[0][0]) if kind == "when" else mine[0][3]}
    if kind in ("who", "first"):
        found = [t[1] for t in sorted(told) if t[2] == verbs[0]]
        assert len(found) == 1 or kind == "first"
        return {found[-1] if "last" in stem else found[0]}
    if kind == "hit":
        asked = [
            t
            for t in told
            if t[2] == "hit" and names[0] == (t[3] if "hit the" in stem and stem.endswith(names[0]) else t[1])
        ]
        return {asked[0][1] if asked[0][3] == names[0] else asked[0][3]}
    if kind == "where":
        moment = 8 if stem.endswith("last") else 1
        return {_cell_of(names[0], moment, told, targets) or "??"}
    if kind == "frame":
        there = _seen(targets, int(stem.split()[-1]))
        return {", ".join(f"{cell} {name}" for cell, name in sorted(there.items())) or "empty"}
    if kind == "order":
        ranked = sorted(row["options"], key=lambda o: by[o][0])
        return {ranked[-1 if "last" in stem else 0]}
    if kind in ("next", "before"):
        pivot = by[re.search(rf"{NAME} \w+(?: (?:left|right|up|down|red|green|blue|yellow))?$", stem)[0]]  # type: ignore[index]
        if kind == "next":
            later = [
                t for t in sorted(told) if t[0] > pivot[0] and t[2] != "hit" and _phrase(t) in row["options"]
            ]
            return {_phrase(later[0])}
        early = " before " in stem
        return {str(sum(t[2] == verbs[0] and (t[0] < pivot[0] if early else t[0] > pivot[0]) for t in told))}
    if kind == "which":
        return {o for o in row["options"] if o in by}
    if kind == "same":
        way = next(t[3] for t in told if t[1] == names[0] and t[2] == "moved")
        return {o for o in row["options"] if f"{o} moved {way}" in by}
    assert kind == "without"
    moves = _moves_without(names[0], told, targets)
    return {o for o in row["options"] if (o in moves if " moved " in o else o in by)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Row, list[Told], list[dict[str, Any]]]]:
    """Every kind beside the list of the same clip and the dense truth of its scene."""
    made = []
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(world, "draw_frames", lambda *_: None)  # nobody looks at these films
    monkeypatch.setattr(world, "mp4_bytes", lambda *_: b"")
    for kind in KINDS:
        path = make_world("video", tmp_path_factory.mktemp("video") / kind, count=90, seed=5, split="test",
                          kinds=["list", kind], options="named")  # fmt: skip
        read = [json.loads(line) for line in path.read_text().splitlines()]
        lists = {r["scene"]: _read_list(r["solution"]) for r in read if r["kind"] == "list"}
        targets = {r["scene"]: r["targets"] for r in read if "targets" in r}
        made += [
            (r, lists[r["scene"]], targets[r["scene"]])
            for r in read
            if r["scene"] in lists and r["kind"] == kind
        ]
    monkeypatch.undo()
    return made


def test_an_independent_reader_agrees_with_every_solution(rows: list[Any]) -> None:
    checked: dict[str, int] = defaultdict(int)
    for row, told, targets in rows:
        if row["kind"] != "list":
            if row["options"]:
                assert text_of(row).endswith(" options: " + ", ".join(row["options"]))
            said = set(row["solution"].split(", ")) if row["options"] else {row["solution"]}
            assert said == _oracle(row, told, targets), (row["id"], text_of(row))
            checked[row["kind"]] += 1
    assert checked.keys() == KINDS.keys() - {"list"}
    assert min(checked.values()) >= 15, dict(checked)


def test_taking_a_thing_away_changes_some_answers_and_leaves_others(rows: list[Any]) -> None:
    """The counterfactual is no copy of what happened, nor of what did not touch the thing by name."""
    asked = [(row, told) for row, told, _ in rows if row["kind"] == "without"]
    prevented = sum(any(o in {_phrase(t) for t in told} for o in set(row["options"]) - set(row["solution"].split(", ")))
                    for row, told in asked)  # fmt: skip
    assert 0.15 * len(asked) < prevented < 0.9 * len(asked)


def test_the_list_agrees_with_the_dense_truth(rows: list[Any]) -> None:
    """Appearing, vanishing, turning, moving and flashing are found again in the labels, cell by cell."""
    for row, told, targets in (r for r in rows if r[0]["kind"] == "list"):
        labels = {t["name"]: t for t in targets}
        assert all(t["grid"] == [8, 4, 4] and t["seconds"] == 4.0 and t["medium"] == 0 for t in targets)
        assert labels["video/colour"]["words"][1:] == list(COLOURS[1:])
        flashes = sorted(i // 16 + 1 for i, on in enumerate(labels["video/flash"]["labels"]) if on)
        assert flashes == sorted(t[0] for t in told if t[2] == "flashed"), row["id"]
        ways = labels["video/motion"]
        for moment, name, verb, what in told:
            cell = _cell_of(name, max(moment, 1), told, targets)
            before = _cell_of(name, moment - 1, told, targets) if moment > 1 else None
            if verb == "moved":
                assert before and cell and before != cell
                at = (moment - 1) * 16 + "abcd".index(cell[0]) * 4 + int(cell[1]) - 1
                assert ways["words"][ways["labels"][at]] == what
            elif verb in ("appeared", "vanished"):
                assert (cell is None) == (verb == "vanished") and (before is None) == (verb == "appeared")


def test_events_are_labelled_in_the_cell_and_at_the_moment_they_are_told_of(rows: list[Any]) -> None:
    for _, told, targets in (r for r in rows if r[0]["kind"] == "list"):
        labels = {t["name"]: t for t in targets}
        event = labels["video/event"]
        found = {(i // 16 + 1, f"{'abcd'[i // 4 % 4]}{i % 4 + 1}", event["words"][x])
                 for i, x in enumerate(event["labels"]) if x}  # fmt: skip
        wanted = {(moment, _cell_of(name, moment - (verb == "vanished"), told, targets), verb)
                  for moment, name, verb, _ in told if verb != "stayed"}  # fmt: skip
        assert found == wanted
        numbers = labels["video/moment"]
        assert [numbers["words"][x] for x in numbers["labels"]] == [str(i // 16 + 1) for i in range(128)]
        cells = labels["video/cell"]
        assert [cells["words"][x] for x in cells["labels"]] == [
            f"{r}{c}" for r in "abcd" for c in range(1, 5)
        ] * 8


def test_rationales_are_short_and_end_in_the_solution(rows: list[Any]) -> None:
    for row, *_ in rows:
        structured = row["rationale"]["structured"]
        parts = re.fullmatch(
            r"<planning>(.+)</planning><caption>(.+)</caption><reasoning>(.+)</reasoning><summary>(.+)</summary>",
            structured,
        )
        assert parts and structured == structured.lower()
        assert len(re.findall(r"\w+|[^\w\s]", " ".join(parts.groups()))) <= 110, structured
        if row["kind"] != "list":
            assert parts[4] == row["solution"]
            assert row["rationale"]["free"].endswith(row["solution"])


def test_thoughts_look_up_what_they_name(rows: list[Any]) -> None:
    """The term, then the moments of what it names: "red star moved 3", "flashed 2 5", "blue star appeared none"."""
    looking = {"hit", "way", "who", "first", "turned", "when", "did", "order", "next", "which", "before"}
    found = set()
    for row, told, _ in (r for r in rows if r[0]["kind"] in looking):
        entries = [(str(m or "stayed"), f"{name} {verb} {what}".rstrip()) for m, name, verb, what in told]
        reasoning = re.search("<reasoning>(.+)</reasoning>", row["rationale"]["structured"])
        assert reasoning
        for said in reasoning[1].split(", "):
            match = re.fullmatch(r"(?!at |it is )([a-z ]+) (none|stayed|\d(?: \d)*)", said)
            if match:
                term = match[1]
                moments = [m for m, words in entries if words.startswith(term) or words.split()[2] == term
                           or (term.startswith("hit ") and words.endswith(term))]  # fmt: skip
                assert match[2] == (" ".join(moments) or "none"), (row["kind"], said, entries)
                found.add(row["kind"])
    assert found == looking


def test_thoughts_about_a_moment_begin_with_what_is_there(rows: list[Any]) -> None:
    found = set()
    for row, _, targets in (r for r in rows if r[0]["kind"] in ("frame", "where")):
        planning, caption = re.findall("<(?:planning|caption)>(.+?)</", row["rationale"]["structured"])
        there = _seen(targets, int(planning.split()[-1]))
        assert caption == (", ".join(f"{cell} {name}" for cell, name in sorted(there.items())) or "empty")
        found.add(row["kind"])
    assert found == {"frame", "where"}


def test_evidence_is_in_the_frame_and_in_the_clip(rows: list[Any]) -> None:
    kinds = set()
    for row, *_ in rows:
        for e in row["evidence"]:
            if "box" in e:
                x0, y0, x1, y1 = e["box"]
                assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64 and 0 <= e["t"] < 4
            else:
                assert 0 <= e["span"][0] < e["span"][1] <= 4
            kinds.add((row["kind"], "box" in e))
    assert {(k, True) for k in KINDS} - kinds <= {("frame", True)}


def test_lettered_options_keep_their_letters(tmp_path: Any) -> None:
    path = make_world(
        "video", tmp_path / "w", count=40, seed=1, split="train", options="lettered", kinds=["which", "who"]
    )
    for row in map(json.loads, path.read_text().splitlines()):
        assert " options: A " in text_of(row) and re.fullmatch(r"[A-D](,[A-D])*", row["solution"])


def test_groups_name_all_kinds_once_and_difficulty_grows() -> None:
    assert sorted(k for kinds in GROUPS.values() for k in kinds) == sorted(KINDS)
    assert world.ASKER.difficulty(1, "way") == 0 and world.ASKER.difficulty(6, "without") == pytest.approx(1)
