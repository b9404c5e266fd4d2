"""Rows: every accepted shape gives the same sample, every wrong row is named, worlds are made once."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from mmreason.data.media import MediaLimits, decode
from mmreason.data.sources import RowError, check_rows, load_rows, parse_row
from mmreason.schema import SourceConfig
from mmreason.types import MediumRef, Message, Part, Sample


def parse(**row: Any) -> Sample:
    return parse_row(row, source="mine", line=3, root="/data")


def png(colour: str = "red") -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


ASKED = (Message("user", (Part("image", medium=0), Part("text", text="How many?"))),)
TYPED: list[dict[str, Any]] = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many?"}]
SHAPES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": TYPED}]},
    {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, TYPED[1]]}]},
    {"messages": [{"role": "user", "content": [{"type": "image"}, TYPED[1]]}], "images": ["a.png"]},
    {"messages": [{"role": "user", "content": "<image>How many?"}], "images": ["a.png"]},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "<image>How many?"}]}],
        "images": ["a.png"],
    },
    {"problem": "<image>How many?", "images": ["a.png"]},
    {"question": "<image>How many?", "images": [{"path": "a.png"}]},
    {"prompt": "<image>How many?", "images": "a.png"},
    {"prompt": [{"role": "user", "content": "<image>How many?"}], "images": ["a.png"]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_gives_the_same_sample(shape: dict[str, Any]) -> None:
    sample = parse(**shape, solution="2")
    assert sample == Sample(
        "mine:3",
        "mine",
        ASKED,
        (MediumRef("image", "a.png", root="/data"),),
        solution="2",
        problem_type="numeric",
    )


def test_media_are_numbered_in_order_of_appearance_over_kinds_and_turns() -> None:
    turns = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": "<image>one<video>two<image>"},
        {"role": "assistant", "content": "seen"},
        {"role": "user", "content": [{"type": "audio", "audio": "d.wav"}]},
    ]
    sample = parse(messages=turns, images=["a.png", "c.png"], videos=["b.mp4"])
    assert [(m.kind, m.path) for m in sample.media] == [
        ("image", "a.png"), ("video", "b.mp4"), ("image", "c.png"), ("audio", "d.wav"),
    ]  # fmt: skip
    parts = [part for message in sample.messages for part in message.parts]
    assert [part.medium for part in parts if part.type != "text"] == [0, 1, 2, 3]
    assert [part.text for part in parts if part.type == "text"] == ["Look.", "one", "two", "seen"]


def test_other_columns_reach_the_reward_and_used_ones_do_not() -> None:
    sample = parse(
        problem="x", solution="2", id=9, difficulty=0.25, kind="count", source="web", reward_hint=[1]
    )
    assert sample.columns == {"kind": "count", "source": "web", "reward_hint": [1]}
    assert (sample.id, sample.source, sample.difficulty) == ("9", "mine", 0.25)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<answer> B </answer>", "B"),
        (["A", "C"], "A,C"),
        (["red", "light blue"], "red, light blue"),
        ("A,C", "A,C"),
        (4, "4"),
        (2.5, "2.5"),
        ("<think>so</think><answer>red</answer>", "red"),
    ],
)
def test_solutions(given: Any, expected: str) -> None:
    assert parse(problem="x", solution=given).solution == expected
    assert parse(problem="x", answer=given).solution == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"solution": "3"}, "numeric"),
        ({"solution": "-1,200.5"}, "numeric"),
        ({"solution": "two"}, "text"),
        ({"solution": "red", "options": ["red", "blue"]}, "single_choice"),
        ({"solution": "A,B", "options": ["red", "blue"]}, "multi_choice"),
        ({"solution": "red, blue", "options": ["red, blue", "none"]}, "single_choice"),
        ({"solution": "3", "problem_type": "text"}, "text"),
    ],
)
def test_problem_types_are_read_off_the_row(row: dict[str, Any], expected: str) -> None:
    assert parse(problem="x", **row).problem_type == expected


@pytest.mark.parametrize(
    "solution", ["A", "(b)", "B.", "a, C", "Red", "light blue, red", "so, so, red", "so,so"]
)
def test_answers_inside_the_options(solution: str) -> None:
    options = ["red", "light blue", "so, so"]
    assert parse(problem="x", solution=solution, options=options).options == tuple(options)


def test_letters_in_front_of_options_are_cut_off() -> None:
    assert parse(problem="x", options=["A. red", "B) blue", "(C) grey"]).options == ("red", "blue", "grey")
    assert parse(problem="x", options=["A. Smith", "I. Newton"]).options == ("A. Smith", "I. Newton")


def test_rationales() -> None:
    assert parse(problem="x", rationale="two").rationale == {"free": "two"}
    both = {"structured": "<think><planning>p</planning></think>", "free": "two"}
    assert parse(problem="x", rationale=both).rationale == {
        "structured": "<planning>p</planning>",
        "free": "two",
    }
    assert parse(problem="x", rationale={"structured": None, "free": "two"}).rationale == {"free": "two"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"problem": "<image>x"}, r"the image number 1 has no file.*one entry of images for each"),
    (
        {"problem": "<image><image>x", "images": ["a.png"]},
        "the image number 2 has no file; there are more <image> markers",
    ),
    ({"problem": "<image>x", "images": ["a.png", "b.png"]}, "1 <image> markers for 2 images"),
    ({"problem": "x", "audios": ["a.wav"]}, "0 <audio> markers for 1 audios"),
    ({"problem": "x", "solution": ""}, "solution: got '', which is empty"),
    ({"problem": "x", "solution": " , "}, "which is empty"),
    ({"problem": "x", "solution": []}, "which is empty"),
    ({"problem": "x", "solution": "<answer> </answer>"}, "which is empty"),
    ({"problem": "x", "solution": {"a": 1}}, "text, a number or a list"),
    (
        {"problem": "x", "solution": "green", "options": ["red", "blue"]},
        r"got 'green'; allowed are the options \['red'",
    ),
    ({"problem": "x", "solution": "red, green", "options": ["red", "blue"]}, "got 'green'"),
    ({"problem": "x", "solution": "C", "options": ["red", "blue"]}, "got 'C'.*letters A to B"),
    ({"problem": "x", "solution": "A,C", "options": ["red", "blue"]}, "letters A to B"),
    ({"problem": "x", "options": "red, blue"}, "a list of texts"),
    ({"problem": "x", "options": ["red", "Red "]}, "two options are the same"),
    ({"problem": "x", "options": ["red", " "]}, "an option is empty"),
    ({"problem": "x", "problem_type": "numerical"}, "allowed are single_choice.*did you mean numeric"),
    ({"problem": "x", "difficulty": 3}, "from 0 .easy. to 1"),
    ({"problem": "x", "difficulty": True}, "from 0"),
    ({"problem": "x", "rationale": {"fancy": "x"}}, "rationale.fancy: .*structured, free"),
    ({"problem": "x", "evidence": "box"}, "evidence: got 'box'"),
    ({"problem": " "}, "the question is empty"),
    ({"solution": "2"}, "no messages; give messages, or one of problem, prompt, question"),
    ({"messages": []}, "messages: got"),
    (
        {"messages": [{"role": "human", "content": "x"}]},
        "messages.0.role: got 'human'; allowed are system, user",
    ),
    ({"messages": [{"role": "user"}]}, "a turn is"),
    (
        {"messages": [{"role": "user", "content": [{"type": "picture"}]}]},
        r"messages.0.content.0: got .*type text, image",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text is needed"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}, "image takes a path"),
]


@pytest.mark.parametrize(("row", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_wrong_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=rf"(?s)data.mine, row mine:3: .*{message}"):
        parse(**row)


@pytest.mark.parametrize(("line", "message"), [("{", "no JSON"), ("[1]", "got a list"), ("3", "got a int")])
def test_lines_that_are_no_rows_are_named(line: str, message: str) -> None:
    with pytest.raises(RowError, match=f"data.mine, row mine:4: {message}"):
        parse_row(line, source="mine", line=4, root=".")


# --- files


def write(folder: Path, rows: list[Any]) -> SourceConfig:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return SourceConfig(path=str(folder / "rows.jsonl"))


def test_jsonl_and_its_media_root(tmp_path: Path) -> None:
    cfg = write(tmp_path, [{"problem": "<image>x", "images": ["a.png"]}, "", {"problem": "y"}])
    samples = load_rows("mine", cfg, tmp_path)
    assert [s.id for s in samples] == ["mine:1", "mine:3"]  # the line in the file
    assert samples[0].media[0].root == str(tmp_path)
    other = cfg.model_copy(update={"media_root": "/pictures", "limit": 1})
    assert [s.media[0].root for s in load_rows("mine", other, tmp_path)] == ["/pictures"]


def test_parquet_with_bytes_and_typed_parts(tmp_path: Path) -> None:
    typed = [{"role": "user", "content": [{"type": "image", "image": {"bytes": png(), "path": "a.png"}, "text": None},
                                          {"type": "text", "image": None, "text": "How many?"}]}]  # fmt: skip
    rows = [{"messages": typed, "solution": "2", "options": None, "rationale": {"free": "two"}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "typed.parquet")
    marked = [{"problem": "<image>How many?", "images": [{"bytes": png(), "path": None}], "solution": "2"}]
    parquet.write_table(pa.Table.from_pylist(marked), tmp_path / "marked.parquet")
    for file in ("typed.parquet", "marked.parquet"):
        (sample,) = load_rows("mine", SourceConfig(path=str(tmp_path / file)), tmp_path)
        assert sample.messages == ASKED and sample.solution == "2"
        assert decode(sample.media[0], MediaLimits()).image is not None


def test_all_problems_come_at_once_and_nothing_is_dropped(tmp_path: Path) -> None:
    good = {"problem": "x", "id": "one"}
    cfg = write(tmp_path, [good, {"problem": "x", "solution": ""}, "{", good, {"problem": "<image>x"}])
    samples, problems = check_rows("mine", cfg, tmp_path)
    assert [sample.id for sample in samples] == ["one"]
    named = [
        "mine:2",
        "mine:3",
        "one",
        "mine:5",
    ]  # as samples are named: by id, and by line where there is none
    assert [p.split(": ")[0] for p in problems] == [f"data.mine, row {name}" for name in named]
    assert problems[2] == "data.mine, row one: lines 1 and 4 have this id; ids must differ"
    with pytest.raises(RowError, match=r"(?s)row mine:2: .*row mine:3: .*row one: .*row mine:5: "):
        load_rows("mine", cfg, tmp_path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"(?s)row mine:20: .*and 5 more"):
        load_rows("mine", write(tmp_path, [{}] * 25), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "a", "read from .jsonl and .parquet"),
        ("gone.jsonl", None, "is not there"),
        ("rows.jsonl", "\n", "has no rows"),
        ("rows.jsonl", b"\xff\xfe", "cannot be read as .jsonl .*utf-8"),
        ("rows.parquet", b"PAR0", "cannot be read as .parquet"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RowError, match=rf"data.mine.path: .*{message}"):
        load_rows("mine", SourceConfig(path=str(tmp_path / name)), tmp_path)


# --- worlds


def test_a_world_is_made_once_and_again_when_its_settings_change(tmp_path: Path) -> None:
    cfg = SourceConfig(world="image", count=12, rationale=False)
    folder = tmp_path / "data" / "train"
    first = load_rows("train", cfg, folder)
    made = (folder / "rows.jsonl").stat().st_mtime_ns
    assert len(first) == 12 and not first[0].rationale and first[0].source == "train"
    assert decode(first[0].media[0], MediaLimits()).image is not None
    assert load_rows("train", cfg, folder) == first
    assert (folder / "rows.jsonl").stat().st_mtime_ns == made
    again = load_rows("train", cfg.model_copy(update={"seed": 1, "rationale": True}), folder)
    assert again != first and again[0].rationale
    assert check_rows("train", cfg, folder) == (load_rows("train", cfg, folder), [])


def test_wrong_worlds_are_named(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"data.train: unknown world 'imag'"):
        load_rows("train", SourceConfig(world="imag"), tmp_path / "x")
    assert (
        "unknown kinds"
        in check_rows("train", SourceConfig(world="image", kinds=["zzz"]), tmp_path / "x")[1][0]
    )


def test_a_row_names_all_of_its_faults() -> None:
    row = {
        "id": "b",
        "question": "<image>x",
        "solution": " ",
        "problem_type": "numerc",
        "difficulty": 7,
        "rationale": 3,
    }
    with pytest.raises(RowError) as caught:
        parse_row(row, source="mine", line=4, root=".")
    said = caught.value.problems
    assert len(said) == 5 and all(line.startswith("data.mine, row b: ") for line in said)
    for part in (
        "the image number 1 has no file",
        "solution",
        "did you mean numeric",
        "difficulty",
        "rationale",
    ):
        assert any(part in line for line in said), part


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "x", "solution": "bananas", "problem_type": "numeric"}, "give a number in digits"),
        (
            {
                "question": "x",
                "solution": "red, green",
                "options": ["red", "green"],
                "problem_type": "single_choice",
            },
            "give one answer, or problem_type multi_choice",
        ),
        ({"question": "x", "image": "a.png", "images": ["b.png"], "solution": "1"}, "both image and images"),
        ({"question": "x", "image": ["a.png", "b.png"], "solution": "1"}, "name the column images"),
    ],
)
def test_what_contradicts_itself_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        parse_row(row, source="mine", line=1, root=".")


def test_a_column_of_one_medium_is_shown_before_the_text_or_at_its_marker() -> None:
    first = parse_row(
        {"question": "how many?", "image": "a.png", "solution": "2"}, source="s", line=1, root="r"
    )
    assert [p.type for p in first.messages[0].parts] == ["image", "text"]
    assert [(m.kind, m.path, m.root) for m in first.media] == [("image", "a.png", "r")] and not first.columns
    placed = parse_row({"question": "how <audio> many?", "audio": "a.wav"}, source="s", line=1, root="r")
    assert [p.type for p in placed.messages[0].parts] == ["text", "audio", "text"]
    both = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what?"}],
            "video": "a.mp4", "audio": "a.mp4"}  # fmt: skip
    parts = parse_row(both, source="s", line=1, root="r").messages[1].parts
    assert [p.type for p in parts] == ["video", "audio", "text"]
