"""The image world's pictures and scenes: pixels agree with boxes and names, splits share no scene."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mmreason.data.worlds.drawing import RGB
from mmreason.data.worlds.image import targets_of
from mmreason.data.worlds.image.draw import CELL, PIXELS, draw_png, evidence_of, lay_out
from mmreason.data.worlds.image.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    Thing,
    draw_scene,
    draw_split_scene,
    split_of,
)


def _picture(scene: Scene, seed: int) -> tuple[np.ndarray, tuple[dict, ...]]:
    rng = np.random.default_rng(seed)
    layout = lay_out(scene, rng)
    image = Image.open(io.BytesIO(draw_png(scene, layout, rng)))
    assert image.size == (PIXELS, PIXELS) and image.mode == "RGB"
    return np.asarray(image).astype(float), evidence_of(scene.things, layout)


def test_every_thing_shows_its_colour_in_its_box_inside_its_cell() -> None:
    for seed in range(40):
        scene = draw_scene(8, np.random.default_rng(seed))
        pixels, boxes = _picture(scene, seed)
        for thing, evidence in zip(scene.things, boxes, strict=True):
            x0, y0, x1, y1 = evidence["box"]
            assert evidence["label"] == thing.name
            assert (x0 // CELL, (x1 - 1) // CELL) == (thing.column - 1, thing.column - 1)
            assert (y0 // CELL, (y1 - 1) // CELL) == (thing.row - 1, thing.row - 1)
            middle = pixels[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 2, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 2]
            nearest = min(COLOURS, key=lambda c: float(np.abs(middle.mean(axis=(0, 1)) - RGB[c]).sum()))
            assert nearest == thing.colour


def test_outside_the_boxes_the_ground_is_light() -> None:
    scene = draw_scene(6, np.random.default_rng(3))
    pixels, boxes = _picture(scene, 3)
    for evidence in boxes:
        x0, y0, x1, y1 = evidence["box"]
        pixels[y0:y1, x0:x1] = 255
    assert pixels.min() > 185


def test_shapes_cover_their_box_as_geometry_says_and_edges_are_soft() -> None:
    covered = {}
    for shape in SHAPES:
        pixels, (evidence,) = _picture(Scene((Thing(2, 2, "blue", shape),)), 1)
        x0, y0, x1, y1 = evidence["box"]
        red = pixels[y0:y1, x0:x1, 0]
        covered[shape] = float((red < 140).mean())
        assert ((red > 90) & (red < 200)).any()  # antialiased
    assert abs(covered["circle"] - np.pi / 4) < 0.05
    assert abs(covered["square"] - 0.81) < 0.08
    assert abs(covered["triangle"] - 0.5) < 0.06
    assert covered["star"] < 0.42


def test_pictures_of_one_scene_differ_in_place_size_and_ground() -> None:
    scene = Scene((Thing(2, 2, "red", "circle"),))
    (one, box_one), (two, box_two) = _picture(scene, 1), _picture(scene, 2)
    assert box_one != box_two
    assert np.abs(one[:8, :8].mean(axis=(0, 1)) - two[:8, :8].mean(axis=(0, 1))).max() > 0.5


def test_a_scene_belongs_to_one_split_whatever_the_order_of_its_things() -> None:
    scene = draw_scene(5, np.random.default_rng(0))
    assert split_of(Scene(scene.things[::-1])) == split_of(scene)
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        assert all(split_of(draw_split_scene(n, split, rng)) == split for n in range(1, 9) for _ in range(10))


def test_a_fifth_of_all_scenes_is_held_out() -> None:
    rng = np.random.default_rng(2)
    held = sum(split_of(draw_scene(4, rng)) == "test" for _ in range(2000))
    assert 320 < held < 480


def test_targets_name_every_cell_and_what_it_holds() -> None:
    colour, shape, row, cell, column = targets_of(
        Scene((Thing(1, 2, "red", "star"), Thing(4, 4, "yellow", "circle")))
    )
    assert (colour.grid, shape.grid) == ((1, 4, 4), (1, 4, 4))
    said = [
        (i, colour.words[c], shape.words[s])
        for i, (c, s) in enumerate(zip(colour.labels, shape.labels, strict=True))
        if c
    ]
    assert said == [(1, "red", "star"), (15, "yellow", "circle")]
    assert [i for i, s in enumerate(shape.labels) if s] == [1, 15]
    assert row.words[row.labels[6]] + column.words[column.labels[6]] == cell.words[cell.labels[6]] == "b3"
