"""The video world's films and physics: what decoded frames show is what the truth says, moment by moment."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from mmreason.data.worlds import make_world
from mmreason.data.worlds.drawing import RGB
from mmreason.data.worlds.image.scenes import COLOURS
from mmreason.data.worlds.rows import Target
from mmreason.data.worlds.video.draw import (
    CELL,
    FPS,
    GLOW,
    PIXELS,
    corner,
    draw_frames,
    evidence_of,
    lay_out,
    targets_of,
)
from mmreason.data.worlds.video.film import mp4_bytes
from mmreason.data.worlds.video.physics import STEPS, Actor, Clip, Undecided, simulate, without
from mmreason.data.worlds.video.scenes import draw_clip, split_of

SIZES = (1, 2, 3, 4, 5, 6)


def _decode(film: bytes) -> tuple[np.ndarray, list[float]]:
    """Frames [n, H, W, 3] as numbers, and their times in seconds."""
    with av.open(io.BytesIO(film)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24") for f in frames]).astype(float), [f.time for f in frames]


def _film(clip: Clip, seed: int) -> tuple[bytes, tuple]:
    rng = np.random.default_rng(seed)
    layout = lay_out(clip, rng)
    return mp4_bytes(draw_frames(clip, layout, rng), FPS), layout


def _cell(frame: np.ndarray, row: int, column: int) -> np.ndarray:
    return frame[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def _colour_seen(cell: np.ndarray) -> int:
    """0, or the number of the colour that the middle of a cell shows; knows no truth. A glow is no colour."""
    middle = cell[4:-4, 4:-4].reshape(-1, 3)
    strong = middle[(middle.max(axis=1) - middle.min(axis=1) > 70) & (np.abs(middle - GLOW).sum(axis=1) > 90)]
    if len(strong) < 3:
        return 0
    votes = [int(np.abs(np.asarray([RGB[c] for c in COLOURS]) - p).sum(axis=1).argmin()) for p in strong]
    return int(np.bincount(votes, minlength=4).argmax()) + 1


def _read(frames: np.ndarray) -> tuple[list[int], list[int]]:
    """Colour and flash of every cell at two frames a second, from pixels alone."""
    cells = [_cell(frames[t], r, c) for t in range(0, len(frames), 4) for r in range(4) for c in range(4)]
    glows = [int((np.abs(cell - GLOW).sum(axis=2) < 60).sum() > 20) for cell in cells]
    return [_colour_seen(cell) for cell in cells], glows


def _labels(targets: Sequence[Target], name: str) -> list[int]:
    return list(next(t for t in targets if t.name == f"video/{name}").labels)


def test_decoded_frames_show_every_colour_and_flash_where_the_truth_has_them() -> None:
    moved = mismatched = 0
    for seed in range(40):
        clip = draw_clip(SIZES, "train", np.random.default_rng(seed))
        frames, times = _decode(_film(clip, seed)[0])
        assert frames.shape == (32, PIXELS, PIXELS, 3)
        assert times == pytest.approx([i / 8 for i in range(32)])
        colours, glows = _read(frames)
        targets = targets_of(clip)
        assert colours == _labels(targets, "colour"), seed
        assert glows == _labels(targets, "flash"), seed
        moved += any(_labels(targets, "motion"))
        # mutants: a film that runs half a second late, and one of another scene
        late = np.concatenate([frames[:4], frames[:-4]])
        mismatched += _read(late)[0] != _labels(targets, "colour") and len(clip.did("stayed")) == 0
    assert moved >= 15
    assert mismatched >= 15


def test_shape_labels_agree_with_how_much_of_a_box_is_covered() -> None:
    for shape, low, high in (
        ("circle", 0.68, 0.9),
        ("square", 0.75, 1.0),
        ("triangle", 0.4, 0.65),
        ("star", 0.2, 0.48),
    ):
        clip = simulate([Actor(2, 3, "blue", shape)])
        film, layout = _film(clip, 3)
        frames, _ = _decode(film)
        left, top = corner(layout[0], clip.tracks[0], 1, 0)
        size = layout[0].size
        box = frames[0][top : top + size, left : left + size]
        assert low < float((box[..., 0] < 150).mean()) < high, shape
        at = _labels(targets_of(clip), "shape")[1 * 4 + 2]
        assert ("", "circle", "square", "triangle", "star")[at] == shape


def test_a_single_frame_shows_which_way_a_thing_goes() -> None:
    for way, (rows, columns) in STEPS.items():
        clip = simulate([Actor(2, 2, "red", "circle", moves=(way, 3))] if way in ("right", "down") else
                        [Actor(3, 3, "red", "circle", moves=(way, 3))])  # fmt: skip
        layout = lay_out(clip, np.random.default_rng(0))
        look = clip.tracks[0][2]
        assert look is not None and look.way == way
        rest = [corner(layout[0], clip.tracks[0], 2, part) for part in range(4)]
        assert len(set(rest)) == 1  # until it goes, nothing tells that it will
        going = [corner(layout[0], clip.tracks[0], 3, part) for part in range(4)]
        ahead = [(x - rest[0][0]) * columns + (y - rest[0][1]) * rows for x, y in going]
        assert ahead == [
            CELL - 4,
            CELL - 4,
            CELL - 4,
            CELL - 3,
        ]  # short of the middle of the cell, in every frame


def test_boxes_hold_the_thing_at_their_time() -> None:
    for seed in range(30):
        clip = draw_clip(SIZES, "test", np.random.default_rng(seed))
        film, layout = _film(clip, seed)
        frames, _ = _decode(film)
        boxes = [e for e in evidence_of(clip.entries, clip, layout) if "box" in e]
        assert len(boxes) == len(clip.entries)
        for evidence in boxes:
            x0, y0, x1, y1 = evidence["box"]
            inside = frames[round(evidence["t"] * FPS)][y0:y1, x0:x1].reshape(-1, 3)
            words = evidence["label"].split()
            colour = words[3] if words[2] == "turned" else words[0]
            first_turn = next((e for e in clip.did("turned") if e.name == " ".join(words[:2])), None)
            if first_turn and (evidence["t"] >= (first_turn.moment - 1) / 2):
                colour = first_turn.what
            near = np.abs(inside - np.asarray(RGB[colour])).sum(axis=1) < 110
            assert near.mean() > 0.12, (seed, evidence)


def test_spans_of_moves_cover_the_time_in_which_the_cell_changes() -> None:
    clip = simulate([Actor(1, 1, "red", "star", moves=("right", 3))])
    (box, span) = evidence_of(clip.did("moved"), clip, lay_out(clip, np.random.default_rng(0)))
    assert box["t"] == 1.0 and span["span"] == [1.0, 2.5]  # cells a1, a2, a3, a4 at moments 2, 3, 4, 5


def _cells(clip: Clip, i: int) -> str:
    return " ".join(look.cell if look else "--" for look in clip.tracks[i])


def test_a_thing_moves_a_cell_a_moment_to_the_wall() -> None:
    clip = simulate([Actor(1, 1, "red", "star", moves=("right", 3))])
    assert _cells(clip, 0) == "a1 a1 a2 a3 a4 a4 a4 a4"
    assert [(e.moment, e.phrase, e.until) for e in clip.events] == [(3, "red star moved right", 5)]


def test_a_hit_stops_the_one_and_moves_the_other_on() -> None:
    one, two = Actor(2, 1, "red", "star", moves=("right", 2)), Actor(2, 3, "blue", "circle")
    clip = simulate([one, two])
    assert _cells(clip, 0) == "b1 b2 b2 b2 b2 b2 b2 b2"
    assert _cells(clip, 1) == "b3 b3 b4 b4 b4 b4 b4 b4"
    assert [(e.moment, e.phrase) for e in clip.events] == [
        (2, "red star moved right"), (3, "red star hit blue circle"), (3, "blue circle moved right")]  # fmt: skip
    assert not without(clip, "red star").events
    freed = without(clip, "blue circle")
    assert _cells(freed, 0) == "b1 b2 b3 b4 b4 b4 b4 b4" and len(freed.events) == 1


def test_appearing_vanishing_turning_and_flashing_happen_at_their_moments() -> None:
    clip = simulate([Actor(3, 3, "green", "square", appears=2, turns=("red", 4), flashes=(6,), vanishes=8)])
    looks = clip.tracks[0]
    assert [look is not None for look in looks] == [False, *[True] * 6, False]
    assert [look.colour for look in looks if look] == ["green"] * 2 + ["red"] * 4
    assert [look.flash for look in looks if look] == [False] * 4 + [True, False]
    assert [e.phrase.split()[2] for e in clip.events] == ["appeared", "turned", "flashed", "vanished"]


@pytest.mark.parametrize(
    "actors",
    [
        [Actor(1, 1, "red", "star", moves=("left", 2))],  # a wall at once: nothing would be seen
        [Actor(1, 1, "red", "star", moves=("right", 2)), Actor(1, 4, "blue", "star")],  # no room behind it
        [Actor(1, 1, "red", "star", moves=("right", 2)), Actor(1, 4, "blue", "star", moves=("left", 2))],
        [Actor(1, 1, "red", "star"), Actor(1, 1, "blue", "star", appears=3)],
    ],
)
def test_what_the_rules_leave_open_is_never_shown(actors: list[Actor]) -> None:
    with pytest.raises(Undecided):
        simulate(actors)


def test_drawn_clips_are_clear_of_their_size_and_of_their_split() -> None:
    rng = np.random.default_rng(5)
    for split in ("train", "test"):
        for size in SIZES:
            clip = draw_clip((size,), split, rng)
            assert len(clip.entries) == size and split_of(clip) == split
            told = [e.moment for e in clip.events if not e.pushed]
            assert len(set(told)) == len(told)
            assert split_of(Clip(clip.actors[::-1], clip.tracks[::-1], clip.events)) == split


def test_equal_settings_give_equal_bytes_and_films_of_the_splits_differ(tmp_path: Path) -> None:
    for name, seed, split in (("a", 7, "train"), ("b", 7, "train"), ("c", 8, "train"), ("d", 7, "test")):
        make_world("video", tmp_path / name, count=24, seed=seed, split=split)
    one = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert one.keys() == {"rows.jsonl", "videos-000.zip", "world.json"}
    assert one == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert all(one["videos-000.zip"] != (tmp_path / x / "videos-000.zip").read_bytes() for x in "cd")
