"""A reader of the question without the picture stays near chance: answers are balanced within every wording."""

from __future__ import annotations

import pytest

from mmreason.data.worlds.image import KINDS
from tests.data.worlds.text_only import Row, accuracy_of, chance_of, rows_by_kind, stem_of, text_of

MARGIN = (
    0.08  # sampling noise of about 280 test rows a kind (one standard error: 0.015 to 0.03), and little more
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Row]]]:
    """split -> kind -> rows."""
    return rows_by_kind("image", tmp_path_factory.mktemp("text-only"), train=7000, test=4000)


def test_kinds_are_asked_equally_often(made: dict[str, dict[str, list[Row]]]) -> None:
    sizes = {kind: len(rows) for kind, rows in made["train"].items()}
    assert sizes.keys() == KINDS.keys()
    assert max(sizes.values()) <= 1.15 * min(sizes.values()), sizes


def test_chance_is_low(made: dict[str, dict[str, list[Row]]]) -> None:
    limits = {"single_choice": 0.37, "multi_choice": 0.11, "numeric": 0.2, "text": 0.11}
    for kind, rows in made["test"].items():
        assert chance_of(rows) <= limits[rows[0]["problem_type"]], kind


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_stays_near_chance(made: dict[str, dict[str, list[Row]]], kind: str) -> None:
    test = made["test"][kind]
    accuracy, chance = accuracy_of(made["train"][kind], test), chance_of(test)
    assert accuracy <= chance + MARGIN, f"{kind}: text alone {accuracy:.3f}, chance {chance:.3f}"


def test_the_predictors_find_a_leak_when_there_is_one(made: dict[str, dict[str, list[Row]]]) -> None:
    """Mutants: phrasings, places of the right option, and shapes that go with some of the colours."""
    colour = {split: made[split]["colour"] for split in made}
    for leaks in (
        lambda row: ("what" in text_of(row)) == (row["solution"] in ("red", "blue")),
        lambda row: row["options"].index(row["solution"]) < 2,
        lambda row: (
            ("star" in stem_of(row) or "circle" in stem_of(row)) == (row["solution"] in ("red", "green"))
        ),
    ):
        train, test = ([row for row in rows if leaks(row)] for rows in colour.values())
        assert accuracy_of(train, test) > chance_of(test) + MARGIN
