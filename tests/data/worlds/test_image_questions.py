"""The image world's truth: hand-written answers for one scene, and an independent reader of the questions."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from mmreason.data.worlds import make_world
from mmreason.data.worlds.asking import Draft
from mmreason.data.worlds.image import ASKER, GROUPS, KINDS
from mmreason.data.worlds.image.scenes import Scene, Thing

#   .            red star     .             red star
#   blue circle  .            green square  .
#   .            .            .             red circle
#   .            .            blue square   .
SCENE = Scene(
    (
        Thing(1, 2, "red", "star"),
        Thing(1, 4, "red", "star"),
        Thing(2, 1, "blue", "circle"),
        Thing(2, 3, "green", "square"),
        Thing(3, 4, "red", "circle"),
        Thing(4, 3, "blue", "square"),
    )
)


def _ask(kind: str, *args: Any) -> Draft:
    """Ask the one question of a kind that has these arguments."""
    rng = np.random.default_rng(0)
    found = [c for c in KINDS[kind].offers(SCENE, rng) if c.args == args]
    assert len(found) == 1, f"{kind}{args} is offered {len(found)} times"
    return KINDS[kind].ask(SCENE, found[0], rng)


@pytest.mark.parametrize(
    ("kind", "args", "answers", "caption", "reasoning"),
    [
        (
            "row",
            (2,),
            ("blue circle empty green square empty",),
            "b1 blue circle, b3 green square",
            "2 in row b",
        ),
        ("cell", (4, 3), ("blue square",), "d3 blue square", "it is blue square"),
        ("cell", (4, 4), ("empty",), "d4 empty", "it is empty"),
        ("count", ((None, "star"),), ("2",), "star a2 a4", "1 2"),
        ("count", (("yellow", "star"),), ("0",), "yellow star none", "0"),
        ("find", ((None, "star"),), ("a2 a4",), "star a2 a4", "2 in all"),
        ("find", (("yellow", "star"),), ("none",), "yellow star none", "0 in all"),
        ("shape", (("green", None),), ("square",), "green square b3", "it is square"),
        ("where", (("red", "circle"),), ("c4",), "red circle c4", "it is at c4"),
        ("sum", (("red", None), ("blue", None)), ("5",), None, None),
        ("difference", (("red", None), ("blue", None)), ("1",), "red a2 a4 c4, blue b1 d3", "3 - 2 = 1"),
        ("relation", (SCENE.things[2], SCENE.things[3]), ("left",), None, "same row, column 1 < 3, left"),
        ("relation", (SCENE.things[5], SCENE.things[3]), ("below",), None, "same column, row d > b, below"),
        ("most", ("colour",), ("red",), None, None),
    ],
)
def test_hand_written_answers(
    kind: str, args: tuple[Any, ...], answers: tuple[str, ...], caption: str | None, reasoning: str | None
) -> None:
    draft = _ask(kind, *args)
    assert draft.answers == answers
    assert caption in (None, draft.thought.caption)
    assert reasoning in (None, draft.thought.reasoning)


def test_caption_names_every_cell_in_reading_order() -> None:
    assert _ask("caption").answers == (
        "row a empty red star empty red star row b blue circle empty green square empty "
        "row c empty empty empty red circle row d empty empty blue square empty",
    )


def test_questions_that_need_one_or_a_clear_winner_are_not_offered_otherwise() -> None:
    rng = np.random.default_rng(0)
    assert not KINDS["colour"].offers(SCENE, rng)  # two of each shape that is there
    assert [c.args for c in KINDS["most"].offers(SCENE, rng)] == [("colour",)]  # shapes are 2, 2, 2
    where = {c.args[0] for c in KINDS["where"].offers(SCENE, rng)}
    assert ("red", "star") not in where and ("green", None) in where


def test_twice_lists_all_that_apply_in_the_order_shown() -> None:
    draft = _ask("twice", "shape")
    assert set(draft.answers) == {"star", "circle", "square"}
    assert draft.answers == tuple(o for o in draft.options if o in draft.answers)


def test_difficulty_grows_with_things_and_with_the_kind() -> None:
    assert ASKER.difficulty(1, "cell") == 0
    assert ASKER.difficulty(8, "twice") == pytest.approx(1)
    assert ASKER.difficulty(4, "count") < ASKER.difficulty(5, "count") < ASKER.difficulty(5, "sum")


# An oracle that knows only the words of a question and a grid of names. It shares no code with the world.
Grid = dict[tuple[int, int], str]


def _matches(grid: Grid, words: str) -> list[tuple[int, int]]:
    wanted = {w.removesuffix("s") for w in words.split()} - {"thing"}
    return sorted(cell for cell, name in grid.items() if wanted <= set(name.split()))


def _read_grid(caption: str) -> Grid:
    grid: Grid = {}
    for row, line in enumerate(re.split(r"row [abcd] ", caption)[1:], start=1):
        cells = re.findall(r"empty|\w+ (?:circle|square|triangle|star)", line)
        assert len(cells) == 4, caption
        grid |= {(row, column): name for column, name in enumerate(cells, start=1) if name != "empty"}
    return grid


def _called(row: int, column: int) -> str:
    return f"{'abcd'[row - 1]}{column}"


def _oracle(kind: str, text: str, options: list[str], grid: Grid) -> set[str]:
    """The right answer, or answers."""
    stem = text.split(" options:")[0].rstrip(".?")
    terms = re.findall(r"(?:(?:red|green|blue|yellow) )?(?:circle|square|triangle|star|thing)s?", stem)
    counts = [len(_matches(grid, t)) for t in terms]
    if kind == "count":
        return {str(counts[0])}
    if kind == "list":
        return {", ".join(f"{_called(row, column)} {name}" for (row, column), name in sorted(grid.items()))}
    if kind == "find":
        return {" ".join(_called(*cell) for cell in _matches(grid, terms[0])) or "none"}
    if kind == "sum":
        return {str(counts[0] + counts[1])}
    if kind == "difference":
        return {str(counts[0] - counts[1] if "more" in stem else counts[1] - counts[0])}
    if kind == "more":
        return {"same" if counts[0] == counts[1] else terms[0] if counts[0] > counts[1] else terms[1]}
    if kind == "which":
        return {o for o in options if _matches(grid, o)}
    if kind == "twice":
        return {o for o in options if len(_matches(grid, o)) >= 2}
    if kind == "most":
        ranked = Counter({o: len(_matches(grid, o)) for o in options}).most_common()
        assert ranked[0][1] > ranked[1][1]
        return {ranked[0][0]}
    if kind in ("row", "cell"):
        letter, digit = re.findall(r"\b([abcd])(\d?)\b", stem)[-1]
        cells = [("abcd".index(letter) + 1, c) for c in ([int(digit)] if digit else range(1, 5))]
        return {" ".join(grid.get(cell, "empty") for cell in cells)}
    found = [_matches(grid, t) for t in terms]
    assert all(len(f) == 1 for f in found), f"{text} names more than one thing"
    (row, column), *rest = (f[0] for f in found)
    if kind == "where":
        return {_called(row, column)}
    if kind in ("colour", "shape"):
        return {grid[row, column].split()[0 if kind == "colour" else 1]}
    assert kind == "relation"
    other = rest[0]
    if "on which side of" in stem:
        (row, column), other = other, (row, column)
    assert (row == other[0]) != (column == other[1])
    if row == other[0]:
        return {"left" if column < other[1] else "right"}
    return {"above" if row < other[0] else "below"}


@pytest.fixture(scope="module", params=["named", "lettered"])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kind beside a caption of the same picture."""
    made = []
    for kind in KINDS:
        if kind != "caption":
            folder = tmp_path_factory.mktemp("world") / kind
            path = make_world(
                "image",
                folder,
                count=160,
                seed=5,
                split="test",
                kinds=["caption", kind],
                options=request.param,
            )
            made += [json.loads(line) for line in path.read_text().splitlines()]
    return made


def test_an_independent_reader_agrees_with_every_solution(rows: list[dict[str, Any]]) -> None:
    checked: dict[str, int] = defaultdict(int)
    captions = {r["scene"]: r for r in rows if r["kind"] == "caption"}
    for row in rows:
        if row["kind"] == "caption" or row["scene"] not in captions:
            continue
        grid = _read_grid(captions[row["scene"]]["solution"])
        text = row["messages"][0]["content"][-1]["text"]
        right = _oracle(row["kind"], text, row["options"], grid)
        if " options: A " in text:
            assert text.endswith(
                " options: " + ", ".join(f"{x} {o}" for x, o in zip("ABCD", row["options"], strict=False))
            )
            said = {row["options"]["ABCD".index(letter)] for letter in row["solution"].split(",")}
        elif row["options"]:
            assert text.endswith(" options: " + ", ".join(row["options"]))
            said = set(row["solution"].split(", "))
        else:
            said = {row["solution"]}
        assert said == right, f"{row['id']} {text}"
        checked[row["kind"]] += 1
    assert checked.keys() == KINDS.keys() - {"caption"}
    assert min(checked.values()) >= 40


def test_rationales_are_short_and_end_in_the_solution(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        structured = row["rationale"]["structured"]
        parts = re.fullmatch(
            r"<planning>(.+)</planning><caption>(.+)</caption><reasoning>(.+)</reasoning><summary>(.+)</summary>",
            structured,
        )
        assert parts, structured
        said = re.findall(r"\w+|[^\w\s]", " ".join(parts.groups()))
        assert len(said) <= 75, structured  # the list of what is seen takes up to c2
        assert structured == structured.lower() or "A" in row["messages"][0]["content"][-1]["text"]
        if row["kind"] not in ("caption", "list"):
            assert row["rationale"]["free"].endswith(row["solution"]) or row["kind"] == "row"
            assert structured.removesuffix("</summary>").endswith(row["solution"])


def test_groups_name_all_kinds_once() -> None:
    assert sorted(k for kinds in GROUPS.values() for k in kinds) == sorted(KINDS)
