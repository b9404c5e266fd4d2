"""Dense truth in rows: what is accepted, and what is refused with the row's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mmreason.data.targets import dense_targets, with_targets
from mmreason.types import MediumRef, Message, Part, Sample

GOOD: dict[str, Any] = {
    "medium": 0,
    "name": "image/colour",
    "words": ["empty", "red"],
    "grid": [1, 2, 2],
    "labels": [0, 1, -100, 0],
}


def _sample(*targets: dict[str, Any]) -> Sample:
    messages = (Message("user", (Part("image", medium=0), Part("text", text="what?"))),)
    return Sample(
        "rows:7", "rows", messages, (MediumRef("image", "a.png"),), columns={"targets": list(targets)}
    )


def test_a_whole_target_is_read() -> None:
    (target,) = dense_targets(_sample(GOOD))
    assert (target.words, target.grid, target.labels) == (("empty", "red"), (1, 2, 2), (0, 1, -100, 0))


def test_rows_without_targets_have_none() -> None:
    bare = Sample("rows:8", "rows", ())
    assert dense_targets(bare) == () and with_targets([bare, _sample(GOOD)]) == [_sample(GOOD)]


def test_a_video_with_targets_is_the_rows_only_one() -> None:
    """Whose frame is whose cannot be told from the frames of two."""
    two = replace(_sample(GOOD), media=(MediumRef("video", "a.mp4"), MediumRef("video", "b.mp4")))
    with pytest.raises(ValueError, match="row rows:7: targets of a video in a row that shows 2"):
        dense_targets(two)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": [0, 1]}, r"2 labels for a grid of \(1, 2, 2\); give 4"),
        ({"labels": [0, 1, 2, -1]}, r"labels \[-1, 2\] for 2 words; allowed are 0\.\.1 and -100"),
        ({"grid": [0, 2, 2]}, "grid.0"),
        ({"words": ["empty"]}, "words"),
        ({"colour": 1}, "colour: Extra inputs"),
        ({"grid": [2, 1, 2]}, "2 bins of time in 0 seconds"),
        ({"medium": 1}, r"targets speak of media \[1\]; the row has 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"row rows:7: .*{complaint}"):
        dense_targets(_sample(GOOD | change))
