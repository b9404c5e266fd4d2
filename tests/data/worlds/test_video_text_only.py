"""A reader of the question without the film stays near chance: answers are balanced within every wording."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmreason.data.worlds import video as world
from mmreason.data.worlds.video import KINDS
from tests.data.worlds.text_only import Row, accuracy_of, chance_of, rows_by_kind, text_of

MARGIN = (
    0.09  # sampling noise of about 200 test rows a kind (one standard error: 0.02 to 0.035), and little more
)
Made = dict[str, dict[str, list[Row]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """split -> kind -> rows; their films are left empty, since nobody looks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "draw_frames", lambda *_: None)
        patch.setattr(world, "mp4_bytes", lambda *_: b"")
        yield rows_by_kind("video", tmp_path_factory.mktemp("text-only"), train=8000, test=4500)


def test_kinds_are_asked_about_equally_often(made: Made) -> None:
    sizes = {kind: len(rows) for kind, rows in made["train"].items()}
    assert sizes.keys() == KINDS.keys()
    assert max(sizes.values()) <= 2.6 * min(sizes.values()), sizes  # two that move the same way are rare


def test_chance_is_low(made: Made) -> None:
    limits = {"single_choice": 0.38, "multi_choice": 0.2, "numeric": 0.4, "text": 0.12}
    for kind, rows in made["test"].items():
        assert chance_of(rows) <= limits[rows[0]["problem_type"]], kind


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_stays_near_chance(made: Made, kind: str) -> None:
    test = made["test"][kind]
    accuracy, chance = accuracy_of(made["train"][kind], test), chance_of(test)
    assert accuracy <= chance + MARGIN, f"{kind}: text alone {accuracy:.3f}, chance {chance:.3f}"


def test_a_leak_would_be_found(made: Made) -> None:
    """Mutants: phrasings that tell the way, and colours that go with it."""
    way = {split: made[split]["way"] for split in made}
    for leaks in (
        lambda row: ("name" in text_of(row)) == (row["solution"] in ("left", "right")),
        lambda row: ("red" in text_of(row) or "blue" in text_of(row)) == (row["solution"] in ("up", "left")),
    ):
        train, test = ([row for row in rows if leaks(row)] for rows in way.values())
        assert accuracy_of(train, test) > chance_of(test) + MARGIN
