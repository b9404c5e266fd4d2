"""What a run writes about its answers: short names, and media that are found again when the run has moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmreason.evaluate.roots import by_root, located, read_roots, roots_of
from mmreason.report.load import load_run


def test_a_users_reward_appears_by_its_short_name(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line if name.startswith("rewards/")}
    assert {"rewards/uneven_reward:uneven/mean", "rewards/blend/mean"} <= names
    assert not [name for name in names if ".py" in name or str(Path(__file__).parent) in name]
    for file in (whole / "completions").iterdir():
        for line in file.read_text().splitlines():
            assert set(json.loads(line)["rewards"]) == {"blend", "uneven_reward:uneven"}


def test_logged_completions_tell_what_each_token_weighed(whole: Path) -> None:
    lines = [
        json.loads(line)
        for file in (whole / "completions").iterdir()
        for line in file.read_text().splitlines()
    ]
    assert lines
    for line in lines:
        assert len(line["token_texts"]) == len(line["token_weights"]) == line["tokens"]
        assert all(1.0 <= weight <= 1.7 for weight in line["token_weights"])
        text = "".join(line["token_texts"])
        if "\ufffd" not in text:  # letters of several bytes may be cut between tokens
            assert text.startswith(line["completion"])
    assert max(weight for line in lines for weight in line["token_weights"]) == pytest.approx(1.7, abs=1e-3)


def test_stored_answers_hold_no_absolute_path_and_a_moved_run_finds_its_media(
    whole: Path, tmp_path: Path
) -> None:
    files = [*(whole / "completions").iterdir(), *(whole / "eval").iterdir()]
    assert len(files) == 4 + 3
    assert not [file for file in files if str(whole) in file.read_text()]
    assert json.loads((whole / "media_roots.json").read_text())["prompts"] == "data/prompts"
    shutil.copytree(whole, tmp_path / "moved")
    run = load_run(tmp_path / "moved")
    media = [m for lines in run.rollouts("grpo") for line in lines for m in line["media"]]
    media += [m for row in run.rows["sft"] for m in row.media]
    assert media
    for medium in media:
        root = Path(medium["root"])
        assert root.parent == tmp_path / "moved" / "data"
        assert (root / medium["path"].split("#")[0]).is_file()


def test_media_outside_the_run_have_their_root_recorded_once(tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    run.mkdir()
    stored = roots_of(run, {"own": str(own), "made": str(run / "data" / "made"), "again": str(own)})
    assert stored == {"own": str(own), "made": "data/made", "again": str(own)}
    (run / "media_roots.json").write_text(json.dumps(stored))
    roots = read_roots(run)
    media = [
        {"kind": "image", "path": str(own / "a" / "1.png"), "root": str(own)},
        {"kind": "image", "path": "2.png", "root": str(tmp_path / "unknown")},
    ]
    names = by_root(media, roots)
    assert names == [{"kind": "image", "path": "a/1.png", "root": "own"}, media[1]]
    assert located(names, roots) == [media[0] | {"path": "a/1.png"}, media[1]]
