"""What is seen and heard, inside the page: playable media within bounds, evidence in time, weights, blanked senses."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmreason.data.media import MediaLimits
from mmreason.evaluate import ablation_block, measures, save_stage
from mmreason.report import album as albums
from mmreason.report import write_report
from mmreason.report.album import WAVE_BINS, Album, Box, Mark, mime_of, outline
from mmreason.report.curves import stage_curves
from mmreason.report.findings import findings
from mmreason.report.gallery import cards
from mmreason.report.headline import headline
from mmreason.report.load import load_run
from mmreason.report.rollouts import rollout_groups
from mmreason.report.slices import accuracy_grids, deprived
from tests.report.synthetic import make_run
from tests.report.test_report import parsed

LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "senses", questions=30, steps=40, films=12)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def medium(run: Path, name: str, kind: str) -> dict[str, str]:
    return {"kind": kind, "path": name, "root": str(run / "data")}


def test_videos_and_sounds_play_inside_the_page(made: Path) -> None:
    page = parsed(write_report(made).read_text(encoding="utf-8"))
    sources = {
        tag: [v for t, n, v in page.attributes if (t, n) == (tag, "src")] for tag in ("video", "audio")
    }
    files = {"video": ("film.mp4", "both.mp4"), "audio": ("beep.wav",)}
    for tag, names in files.items():
        inside = {base64.b64decode(uri.split(",", 1)[1]) for uri in sources[tag]}
        assert inside == {(made / "data" / name).read_bytes() for name in names}
    assert all(uri.startswith("data:video/mp4;base64,") for uri in sources["video"])
    assert all(uri.startswith("data:audio/wav;base64,") for uri in sources["audio"])
    posters = [v for t, n, v in page.attributes if (t, n) == ("video", "poster")]
    assert len(posters) == len(sources["video"]) and all(v.startswith("data:image/") for v in posters)
    assert not [n for t, n, _ in page.attributes if t in sources and n == "autoplay"]


def test_a_film_with_its_sound_is_one_player_and_two_clips_are_two(made: Path) -> None:
    both = [medium(made, "both.mp4", "video"), medium(made, "both.mp4", "audio")]
    (one,) = Album(LIMITS).views(both)
    assert (one.kind, one.sound, round(one.seconds, 1)) == ("video", True, 4.0) and one.wave
    apart = Album(LIMITS).views([medium(made, "film.mp4", "video"), medium(made, "beep.wav", "audio")])
    assert [(v.kind, v.sound) for v in apart] == [("video", False), ("audio", True)] and not apart[0].wave
    assert len(Album(LIMITS).views([medium(made, "beep.wav", "audio")] * 2)) == 2


def test_evidence_stands_at_its_place_and_its_moment(made: Path) -> None:
    both = [medium(made, "both.mp4", "video"), medium(made, "both.mp4", "audio")]
    evidence: list[dict[str, Any]] = [
        {"box": [8, 10, 20, 22], "t": 3.0, "label": "a"},
        {"box": [1, 2, 3, 4], "t": 1.0, "label": "b"},
        {"span": [2.5, 3.5], "label": "a"},
        {"span": [0.25, 0.5], "label": "beep", "medium": 1},
    ]
    (view,) = Album(LIMITS).views(both, evidence)
    assert abs(view.poster_time - 3.0) <= 0.125  # the frame shown is the one of the first box
    assert view.boxes == (Box(8, 10, 12, 12, "a", 3.0, True), Box(1, 2, 2, 2, "b", 1.0, False))
    # the moment of `a` lies in its span and is not marked twice; that of `b` is
    assert view.marks == (Mark(0.25, 0.5, "beep"), Mark(1.0, 1.0, "b"), Mark(2.5, 3.5, "a"))
    clips = Album(LIMITS).views([medium(made, "beep.wav", "audio")] * 2, [evidence[3]])
    assert [len(v.marks) for v in clips] == [0, 1]


def test_the_outline_follows_the_loudness() -> None:
    wave = np.concatenate([np.zeros(1600), np.full(1600, 0.5), np.full(1600, -0.25)]).astype(np.float32)
    tops = [float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", outline(wave))][: WAVE_BINS + 1]
    third = WAVE_BINS // 3
    assert tops[third // 2] == 19.6 and tops[third + third // 2] == 0.6 and tops[-third // 2] == 10.1
    assert "nan" not in outline(np.zeros(3, np.float32))


def test_only_files_that_browsers_play_go_inside(made: Path) -> None:
    film, sound = ((made / "data" / n).read_bytes() for n in ("film.mp4", "beep.wav"))
    assert (mime_of(film, "video"), mime_of(film, "audio"), mime_of(sound, "audio")) == (
        "video/mp4",
        "audio/mp4",
        "audio/wav",
    )
    assert mime_of(b"RIFF\0\0\0\0AVI LIST", "video") is None and mime_of(b"", "audio") is None


def test_the_page_stays_small_and_says_what_is_left_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(albums, "MOST_FILE", 1000)
    view = Album(LIMITS).views([medium(run, "film.mp4", "video")])[0]
    assert not view.uri and view.poster and "stayed out of this page; this is the frame at" in view.note
    monkeypatch.undo()
    monkeypatch.setattr(albums, "MOST_MEDIA", 3)
    album = Album(LIMITS)
    views = [album.views([medium(run, "beep.wav", "audio")])[0] for _ in range(5)]
    assert [bool(v.uri) for v in views] == [True] * 3 + [False] * 2 and album.left_out == 2
    text = write_report(run).read_text(encoding="utf-8")
    assert re.search(r"This page is bounded: \d+ media stayed out of it", text)
    monkeypatch.undo()
    monkeypatch.setattr(albums, "MOST_BYTES", 300_000)
    bounded = write_report(run).stat().st_size
    monkeypatch.undo()
    assert bounded < write_report(run).stat().st_size - 300_000


def test_a_lost_film_is_said_and_does_not_stop_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", questions=3, steps=10, films=4)
    (run / "data" / "film.mp4").unlink()
    (run / "data" / "beep.wav").write_bytes(b"RIFF nothing")
    text = write_report(run).read_text(encoding="utf-8")
    assert "This video cannot be shown: film.mp4" in text and "This audio cannot be shown: beep.wav" in text


def test_every_modality_is_among_the_answers_and_the_first_screen(made: Path) -> None:
    run = load_run(made)
    chosen = cards(run, Album(LIMITS))
    by_outcome: dict[str, set[str]] = {}
    for card in chosen:
        by_outcome.setdefault(card.outcome, set()).add(card.row.modality)
    assert set().union(*by_outcome.values()) == {"image", "video", "audio", "av"}
    assert by_outcome["right"] == {"image", "video", "audio", "av"}
    senses = {s.name: s for s in headline(run).senses}
    assert set(senses) == {"image", "video", "audio", "av"}
    last = run.evaluation["grpo"]["by_modality"]
    for name, sense in senses.items():
        (part,) = sense.parts
        assert (part.accuracy, part.chance) == (last[name]["accuracy"], last[name]["chance"])
    grid = next(g for g in accuracy_grids(run) if g.title == "Modality")
    assert [name for name, _ in grid.rows] == ["all", "audio", "av", "image", "video"]


def test_the_groups_of_a_modality_stand_apart(run: Path) -> None:
    """Where primitive and compositional questions are asked, no number on the first screen pools them."""
    for stage, block in list(load_run(run).evaluation.items()):
        rows = [
            replace(r, group="primitive" if i % 3 == 0 else "compositional")
            for i, r in enumerate(load_run(run).rows[stage])
        ]
        rows = [replace(r, correct=0.0) if (r.group, r.modality) == ("primitive", "av") else r for r in rows]
        save_stage(run, stage, rows, parent=block["parent"])
    loaded = load_run(run)
    rows = list(loaded.rows["grpo"])
    parts = {(s.name, p.group): p for s in headline(loaded).senses for p in s.parts}
    assert len(parts) == 8
    for (modality, group), part in parts.items():
        own = [r for r in rows if (r.modality, r.group) == (modality, group)]
        assert part.n == len(own) and part.accuracy == sum(r.correct or 0.0 for r in own) / len(own)
    assert parts["av", "primitive"].level == "bad"
    titles = [f.title for f in findings(loaded)]
    assert any("not certainly above chance in" in t and "av (primitive)" in t for t in titles)
    grids = {g.title: [name for name, _ in g.rows] for g in accuracy_grids(loaded)}
    assert grids["Group"] == ["all", "compositional", "primitive"]
    assert grids["Modality"] == [
        f"{m}, {g}" for m in ("audio", "av", "image", "video") for g in grids["Group"][1:]
    ]
    assert "all" not in grids["Problem type"]


def test_a_modality_at_chance_is_a_finding(run: Path) -> None:
    stored = json.loads((run / "eval.json").read_text())
    for name in ("audio", "video"):
        stored["grpo"]["by_modality"][name] |= {"accuracy": 0.1, "chance": 0.5, "n": 100}
    (run / "eval.json").write_text(json.dumps(stored))
    found = {f.title: f for f in findings(load_run(run))}
    finding = found["grpo: not certainly above chance in audio and video"]
    assert finding.level == "bad" and "audio 10.0% (chance 50.0%)" in finding.detail


def add_weights(run: Path, files: list[Path]) -> None:
    for file in files:
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line |= {"token_texts": ["<think>", " a&b", "</think>"], "token_weights": [1.0, 1.5, 0.0]}
        lines[0]["token_weights"][1] = 1.25
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_token_weights_are_drawn_over_the_completion(run: Path) -> None:
    files = sorted((run / "completions").iterdir())
    add_weights(run, files[2:5])
    groups = rollout_groups(load_run(run), Album(LIMITS))
    steps = [int(file.stem.rsplit("-", 1)[1]) for file in files[2:5]]
    assert [g.step for g in groups] == steps  # where some are weighed, those are shown
    heats = {t.weight: round(t.heat, 3) for g in groups for r in g.rollouts for t in r.tokens}
    assert heats == {1.0: 0.0, 1.25: 0.5, 1.5: 1.0, 0.0: 0.0}
    text = write_report(run).read_text(encoding="utf-8")
    assert '<span style="--h:1.00" title="weight 1.50"> a&amp;b</span>' in text
    assert '<span style="--h:0.50" title="weight 1.25">' in text
    assert '<span class="off" title="weight 0.00">' in text and "token weight 1.0" in text


def test_a_completion_that_came_several_times_is_shown_once(run: Path) -> None:
    for file in (run / "completions").iterdir():
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines, lines[0], lines[0]]) + "\n")
    groups = rollout_groups(load_run(run), Album(LIMITS))
    for group in groups:
        assert max(r.times for r in group.rollouts) >= 3
        assert all(one != other for one, other in combinations(group.rollouts, 2))
    text = write_report(run).read_text(encoding="utf-8")
    assert all(f"{r.times} times" in text for group in groups for r in group.rollouts if r.times > 1)


def test_rollouts_show_each_modality_before_any_twice(made: Path) -> None:
    groups = rollout_groups(load_run(made), Album(LIMITS))
    assert [g.step for g in groups] == sorted(g.step for g in groups) and len(groups) == 8
    named = [g.facts.split(",")[0] for g in groups]
    logged = {
        json.loads(file.read_text().splitlines()[0])["modality"] for file in (made / "completions").iterdir()
    }
    assert len(logged) >= 3 and set(named) == logged


def test_what_is_missed_without_a_sense(run: Path) -> None:
    loaded = load_run(run)
    plain = loaded.rows["grpo"]
    blocks = {}
    for name, kinds, right in (("image", ("image",), 0.0), ("audio", ("audio", "av"), None)):
        rows = [r for r in plain if r.modality in kinds]
        changed = [r if right is None else type(r)(**{**r.__dict__, "correct": right}) for r in rows]
        blocks[name] = ablation_block(plain, changed)
    (run / "ablations.json").write_text(json.dumps({"stage": "grpo", "ablations": blocks}))
    loaded = load_run(run)
    lines = {(d.what, d.modality): d for d in deprived(loaded)}
    assert set(lines) == {("image blanked", "image"), ("audio blanked", "audio"), ("audio blanked", "av")}
    image = lines["image blanked", "image"]
    pictures = measures([r for r in plain if r.modality == "image"], {})
    assert (image.ablated, image.plain, image.n) == (0.0, pictures["accuracy"], 30)
    assert image.difference.startswith(f"\u2212{100 * pictures['accuracy']:.1f} (")
    (finding,) = (f for f in findings(loaded) if "no certain loss when a medium is blanked" in f.title)
    assert "av with audio blanked +0.0" in finding.detail and "image" not in finding.detail
    text = write_report(run).read_text(encoding="utf-8")
    assert "Is each sense used?" in text and 'href="#senses"' in text


def test_a_pretask_has_a_curve_for_each_thing_it_learns(run: Path) -> None:
    lines = [
        {
            "step": i + 1,
            "stage": "sft",
            "loss": 1.0,
            **{f"pretask/image/{w}/accuracy": 0.9 for w in ("colour", "shape")},
            **{f"pretask/image/{w}/accuracy_things": 0.9 for w in ("colour", "shape")},
            "pretask/video/motion/accuracy": 0.9,
            "pretask/video/motion/accuracy_things": 0.2,
        }
        for i in range(12)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    loaded = load_run(run)
    (stage,) = stage_curves(loaded)
    drawn = {(c.title, c.note.split()[2]): [name for _, name, _ in c.legend] for c in stage.first}
    assert drawn["Perception: image", "cells"] == ["colour", "shape"]
    assert [c.title for c in stage.first if c.title.startswith("Perception")] == (
        ["Perception: image"] * 2 + ["Perception: video"] * 2
    )
    assert not stage.later
    (finding,) = (f for f in findings(loaded) if "hardly perceives" in f.title)
    assert finding.title == "sft: hardly perceives video/motion" and "20.0%" in finding.detail
