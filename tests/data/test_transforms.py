"""SFT targets and thought dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmreason.data.transforms import by_media, supervised, target_text, thought_dropout
from mmreason.types import MediumRef, Message, Part, Sample

ROW = Sample(
    "rows:1", "rows", (Message("user", (Part("text", text="How many?"),)),), solution="2",
    rationale={"structured": "<planning>p</planning>", "free": "one and one"}, difficulty=0.5,
)  # fmt: skip


def last(sample: Sample) -> str:
    assert sample.messages[-1].role == "assistant"
    return "".join(part.text for part in sample.messages[-1].parts)


def test_targets_by_style() -> None:
    assert target_text(ROW, "free") == "<think>one and one</think><answer>2</answer>"
    assert target_text(ROW, "structured") == "<think><planning>p</planning></think><answer>2</answer>"
    assert target_text(ROW, "none") == "<think>\n\n</think><answer>2</answer>"


def test_rows_without_what_a_target_needs_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"rows:1: no rationale in style 'structured'; the row has \['free'\]"
    ):
        target_text(replace(ROW, rationale={"free": "x"}), "structured")
    with pytest.raises(ValueError, match="rows:1: no solution"):
        supervised(replace(ROW, solution=None), "none", 0.0, 0)


def test_dropout_is_a_fixed_share_of_rows() -> None:
    ids = [f"rows:{i}" for i in range(4000)]
    dropped = {i for i in ids if thought_dropout(i, 0, 0.3)}
    assert abs(len(dropped) / 4000 - 0.3) < 0.03
    assert dropped == {i for i in ids if thought_dropout(i, 0, 0.3)}
    assert dropped != {i for i in ids if thought_dropout(i, 1, 0.3)}
    assert dropped < {
        i for i in ids if thought_dropout(i, 0, 0.6)
    }  # more dropout drops the same ones and more
    assert not any(thought_dropout(i, 0, 0.0) for i in ids) and all(thought_dropout(i, 0, 1.0) for i in ids)


def test_dropout_does_not_look_at_difficulty() -> None:
    for i in range(50):
        rows = [replace(ROW, id=f"rows:{i}", difficulty=d) for d in (None, 0.0, 1.0)]
        assert len({last(supervised(row, "free", 0.5, 0)) for row in rows}) == 1


def test_supervised_appends_the_target_or_keeps_the_rows_own_turn() -> None:
    assert last(supervised(ROW, "free", 0.0, 0)) == "<think>one and one</think><answer>2</answer>"
    assert last(supervised(ROW, "free", 1.0, 0)) == "<think>\n\n</think><answer>2</answer>"
    own = replace(
        ROW, messages=(*ROW.messages, Message("assistant", (Part("text", text="<think>a</think>b"),)))
    )
    assert last(supervised(own, "structured", 0.0, 0)) == "<think>a</think>b"
    assert last(supervised(own, "structured", 1.0, 0)) == "<think>\n\n</think>b"
    assert len(supervised(own, "structured", 1.0, 0).messages) == 2
    assert ROW.messages[-1].role == "user"  # the sample itself is not touched


def test_questions_on_one_picture_come_together() -> None:
    pictures = [(MediumRef("image", f"{name}.png"),) for name in "ab"]
    rows = []
    for i, media in enumerate([pictures[0], pictures[1], pictures[0], pictures[0]]):
        parts = (Part("image", medium=0), Part("text", text=f"q{i}"))
        messages = (Message("user", parts), Message("assistant", (Part("text", text=f"a{i}"),)))
        rows.append(Sample(f"r:{i}", "r", messages, media, solution=str(i)))
    groups = by_media(rows, 2)
    assert [[row.id for row in group] for group in groups] == [["r:0", "r:2"], ["r:1"], ["r:3"]]
    assert by_media(rows, 1) == [(row,) for row in rows]
    alone = [replace(row, media=(), messages=(Message("user", (Part("text", text="q"),)),)) for row in rows]
    assert by_media(alone, 2) == [(row,) for row in alone]


def test_questions_that_begin_otherwise_stay_apart() -> None:
    """What stands before the last medium is shared, so it must be the same; a reply there is learned row by row."""
    media = (MediumRef("image", "a.png"), MediumRef("image", "b.png"))
    first, second, ask = Part("image", medium=0), Part("image", medium=1), Part("text", text="which?")
    reply = Message("assistant", (Part("text", text="red"),))

    def sample(name: str, *messages: Message) -> Sample:
        return Sample(name, "r", messages, media)

    together = [sample(n, Message("user", (first, ask, second, Part("text", text=n)))) for n in ("a", "b")]
    before = [sample(n, Message("user", (Part("text", text=n), first, second, ask))) for n in ("c", "d")]
    turns = (Message("user", (first, ask)), reply, Message("user", (second, ask)))
    later = [sample(n, *turns) for n in ("e", "f")]
    named = [sample("g", Message("system", (ask,)), *together[0].messages)]
    groups = by_media([*together, *before, *later, *named], 4)
    assert [[row.id for row in group] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"], ["f"], ["g"]]
