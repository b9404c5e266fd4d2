"""A reader of the question without the sound stays near chance: answers are balanced within every wording."""

from __future__ import annotations

import numpy as np
import pytest

from mmreason.data.worlds import audio
from mmreason.data.worlds.audio import KINDS
from tests.data.worlds.text_only import Row, accuracy_of, chance_of, rows_by_kind, stem_of, text_of

MARGIN = (
    0.08  # sampling noise of about 170 test rows a kind (one standard error: 0.02 to 0.04), and little more
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Row]]]:
    """split -> kind -> rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "sound", lambda *_: np.zeros(1))  # nobody listens
        return rows_by_kind("audio", tmp_path_factory.mktemp("text-only"), train=7000, test=4000)


def test_kinds_are_asked_about_equally_often(made: dict[str, dict[str, list[Row]]]) -> None:
    """Nearly: not every pair of clips offers every kind."""
    sizes = {kind: len(rows) for kind, rows in made["train"].items()}
    assert sizes.keys() == KINDS.keys()
    assert max(sizes.values()) <= 1.7 * min(sizes.values()), sizes


def test_chance_is_low(made: dict[str, dict[str, list[Row]]]) -> None:
    limits = {"single_choice": 0.37, "multi_choice": 0.13, "numeric": 0.3, "text": 0.17}
    for kind, rows in made["test"].items():
        limit = 0.53 if kind == "loud" else limits[rows[0]["problem_type"]]  # soft or loud: two options
        assert chance_of(rows) <= limit, kind


@pytest.mark.parametrize("kind", KINDS)
def test_text_alone_stays_near_chance(made: dict[str, dict[str, list[Row]]], kind: str) -> None:
    test = made["test"][kind]
    accuracy, chance = accuracy_of(made["train"][kind], test), chance_of(test)
    assert accuracy <= chance + MARGIN, f"{kind}: text alone {accuracy:.3f}, chance {chance:.3f}"


def test_the_predictors_find_a_leak_when_there_is_one(made: dict[str, dict[str, list[Row]]]) -> None:
    """Mutants: phrasings, places of the right option, and kinds that go with some of the pitches."""
    pitch = {split: made[split]["pitch"] for split in made}
    for leaks in (
        lambda row: ("what" in text_of(row)) == (row["solution"] == "high"),
        lambda row: row["options"].index(row["solution"]) < 1,
        lambda row: ("bell" in stem_of(row) or "horn" in stem_of(row)) == (row["solution"] == "low"),
    ):
        train, test = ([row for row in rows if leaks(row)] for rows in pitch.values())
        assert accuracy_of(train, test) > chance_of(test) + MARGIN
