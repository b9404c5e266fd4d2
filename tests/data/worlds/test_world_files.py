"""Worlds on disk: complete or absent, the same bytes for the same settings, few files, useful refusals."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmreason.data import worlds
from mmreason.data.worlds import make_world, read_settings, world_settings


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _content(rows: list[dict[str, Any]]) -> set[str]:
    return {r["solution"] for r in rows if r["kind"] == "caption"}


def test_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_world("image", tmp_path / name, count=40, seed=seed, split="train")
    for file in ("rows.jsonl", "images-000.zip", "world.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_a_longer_world_begins_with_the_shorter_one(tmp_path: Path) -> None:
    short = make_world("image", tmp_path / "short", count=30, seed=1, split="train")
    long = make_world("image", tmp_path / "long", count=90, seed=1, split="train")
    assert _rows(long)[:30] == _rows(short) and len(_rows(long)) == 90


def test_every_row_names_a_picture_that_is_stored_plainly(tmp_path: Path) -> None:
    path = make_world("image", tmp_path / "w", count=60, seed=2, split="test")
    rows = _rows(path)
    assert len({r["id"] for r in rows}) == 60
    with zipfile.ZipFile(path.parent / "images-000.zip") as archive:
        assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
        for row in rows:
            image, question = row["messages"][0]["content"]
            shard, member = image["image"].split("#")
            assert shard == "images-000.zip" and re.fullmatch(r"\d{6}\.png", member)
            assert Image.open(io.BytesIO(archive.read(member))).format == "PNG"
            assert question["type"] == "text" and row["problem_type"] in (
                "single_choice",
                "multi_choice",
                "numeric",
                "text",
            )
        assert len(archive.namelist()) == len({r["scene"] for r in rows}) <= 20
    assert sorted(p.name for p in path.parent.iterdir()) == ["images-000.zip", "rows.jsonl", "world.json"]


def test_pictures_go_on_in_the_next_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "FILES_PER_SHARD", 4)
    path = make_world("image", tmp_path / "w", count=40, seed=2, split="train")
    refs = [r["messages"][0]["content"][0]["image"] for r in _rows(path)]
    assert {"images-000.zip#000003.png", "images-001.zip#000004.png"} <= set(refs)
    for ref in refs:
        shard, member = ref.split("#")
        with zipfile.ZipFile(path.parent / shard) as archive:
            assert member in archive.namelist() and len(archive.namelist()) <= 4


def test_train_and_test_share_no_scene_over_seeds(tmp_path: Path) -> None:
    """Small scenes, where chance meetings are likely: only 256 scenes hold a single thing."""
    made = {}
    for split in ("train", "test"):
        path = make_world(
            "image", tmp_path / split, count=600, seed=3, split=split, kinds=["caption"], difficulty=(0, 0.3)
        )
        made[split] = _content(_rows(path))
    assert len(made["train"]) > 250 and len(made["test"]) > 60
    assert not made["train"] & made["test"]


def test_difficulty_and_kinds_are_kept(tmp_path: Path) -> None:
    path = make_world(
        "image",
        tmp_path / "w",
        count=80,
        seed=0,
        split="train",
        kinds=["sum", "primitive"],
        difficulty=(0.3, 0.6),
    )
    rows = _rows(path)
    assert all(0.3 <= r["difficulty"] <= 0.6 for r in rows)
    primitive = {"caption", "list", "row", "cell", "find", "count", "colour", "shape", "where"}
    assert {r["kind"] for r in rows} == {"sum", *primitive}


def test_difficulty_spreads_over_its_thirds(tmp_path: Path) -> None:
    rows = _rows(make_world("image", tmp_path / "w", count=600, seed=0, split="train", rationale=False))
    thirds = [sum(lo <= r["difficulty"] < lo + 1 / 3 for r in rows) / 600 for lo in (0, 1 / 3, 2 / 3)]
    assert min(thirds) > 0.12, thirds
    assert not any("rationale" in r for r in rows)


def test_settings_tell_whether_a_folder_matches(tmp_path: Path) -> None:
    wanted = world_settings(
        "image", count=20, seed=0, split="train", kinds=["sum", "count"], difficulty=(0, 1)
    )
    assert read_settings(tmp_path) is None
    make_world("image", tmp_path / "w", count=20, seed=0, split="train", kinds=["count", "sum"])
    assert read_settings(tmp_path / "w") == wanted
    assert read_settings(tmp_path / "w") != world_settings("image", count=20, seed=0, split="train")


def test_an_older_world_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    make_world("image", tmp_path / "w", count=20, seed=0, split="train")
    path = make_world("image", tmp_path / "w", count=8, seed=0, split="train")
    assert len(_rows(path)) == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="not a world"):
        make_world("image", tmp_path / "mine", count=8, seed=0, split="train")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_a_world_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"twice.*give no question; widen the range"):
        make_world(
            "image", tmp_path / "w", count=8, seed=0, split="train", kinds=["twice"], difficulty=(0, 0.1)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "imaeg"}, r"unknown world 'imaeg'; allowed are image"),
        ({"split": "val"}, r"split is 'val'; allowed is one of train, test"),
        ({"options": "numbered"}, r"options is 'numbered'; allowed is one of named, lettered"),
        ({"count": 0}, r"count is 0; allowed is at least 1"),
        ({"difficulty": (0.5, 0.2)}, r"difficulty is \(0.5, 0.2\); allowed is two numbers"),
        (
            {"kinds": ["sums"]},
            r"unknown kinds \['sums'\]; allowed are the kinds caption, .* and groups primitive",
        ),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"name": "image", "count": 8, "seed": 0, "split": "train"} | change
    with pytest.raises(ValueError, match=message):
        world_settings(settings.pop("name"), **settings)
