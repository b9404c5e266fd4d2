"""The page from a synthetic run: self-contained, escaped, complete, and honest on its first screen."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmreason.evaluate import save_stage
from mmreason.report import write_report
from mmreason.report.curves import stage_curves
from mmreason.report.findings import cost, findings
from mmreason.report.gallery import pieces, spread
from mmreason.report.headline import headline
from mmreason.report.hedging import hedging
from mmreason.report.load import load_run
from mmreason.report.slices import accuracy_grids, slices
from mmreason.report.svg import Series, line_chart, shorten, smoothed, ticks
from tests.report.synthetic import ATTACK, make_run


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "good", questions=180)
    return folder, write_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "trouble", trouble=True)
    return folder, write_report(folder).read_text(encoding="utf-8")


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    return page


def test_page_needs_no_network_and_no_other_file(good):
    page = parsed(good[1])
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "http://" not in good[1] and "https://" not in good[1]
    assert "@import" not in good[1] and "url(" not in good[1]
    assert "default-src 'none'" in good[1]


def test_what_a_model_wrote_is_text_and_never_markup(trouble):
    page = parsed(trouble[1])
    assert page.tags.count("script") == 1
    assert ATTACK not in trouble[1]
    assert trouble[1].count("&lt;script&gt;alert(") >= 3  # an answer, a rollout, a quarantine reason
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(
        value.startswith("data:image/")
        for tag, name, value in page.attributes
        if (tag, name) == ("img", "src")
    )


def test_only_our_script_may_run(good):
    import hashlib

    script = re.search(r"<script>(.*?)</script>", good[1], re.DOTALL)
    allowed = re.search(r"script-src 'sha256-([^']+)'", good[1])
    assert script and allowed
    assert base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode() == allowed.group(1)


def test_every_section_is_there(good):
    sections = (
        "Did it learn?", "At what cost?", "What is wrong?", "Accuracy against chance", "By form of question",
        "All measures", "Hedging", "Thinking by difficulty", "Learning curves", "Curriculum over time",
        "Held-out answers",
        "Rollouts and their rewards", "Reward parts", "Entropy", "KL to the reference", "Completion length",
        "Think rate by difficulty", "The resolved recipe",
    )  # fmt: skip
    for words in sections:
        assert words in good[1], words
    ids = {value for _, name, value in parsed(good[1]).attributes if name == "id"}
    targets = {value[1:] for _, name, value in parsed(good[1]).attributes if name == "href"}
    assert targets <= ids
    for name in ("numeric", "multi choice", "single choice", "easy", "middle", "hard"):
        assert name in good[1]


def test_pictures_come_from_the_archive_with_their_boxes(good):
    folder, text = good
    uris = [value for tag, name, value in parsed(text).attributes if (tag, name) == ("img", "src")]
    assert len(uris) >= 10
    picture = Image.open(io.BytesIO(base64.b64decode(uris[0].split(",", 1)[1])))
    assert picture.size == (96, 96)
    assert 'viewBox="0 0 96 96"' in text and text.count("<rect") >= 10
    assert re.search(r'<rect x="6.0" y="6.0" width="22.0" height="22.0"', text)


def test_a_lost_picture_is_said_and_does_not_stop_the_report(tmp_path):
    folder = make_run(tmp_path / "run", questions=21, steps=10)
    (folder / "data" / "images-000.zip").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "This image cannot be shown" in text and "images-000.zip" in text


def test_first_screen_of_a_good_run(good):
    run = load_run(good[0])
    said = headline(run)
    assert run.line == ["before", "sft", "grpo"] and run.rivals == ["sft_longer"]
    assert said.level == "good" and said.title.startswith("It learned: ")
    (ladder,) = said.ladders
    assert [bar.label for bar in ladder.bars] == [
        "before training",
        "sft",
        "grpo",
        "sft_longer (rival of grpo)",
    ]
    assert [bar.accuracy for bar in ladder.bars] == [
        b["overall"]["accuracy"] for b in run.evaluation.values()
    ]
    assert any("grpo ends" in sentence and "rival sft_longer" in sentence for _, sentence in said.sentences)
    assert findings(run) == [] and "Nothing." in good[1]
    values = {name: value for name, value, _ in cost(run)}
    assert values["Wall time"] == "10\u00a0min\u00a011\u00a0s" and values["Peak memory"] == "2.31 GB"
    assert values["Machine"] == "2 CPU cores"
    details = {name: detail for name, _, detail in cost(run)}
    assert details["Machine"].startswith("2 torch threads; ") and details["Tokens learned"].endswith(
        "in 120 steps"
    )
    some = cost(replace(run, metrics=run.metrics[9::10]))
    assert some[2][2].endswith("in the 12 of 120 steps that were logged")


def test_difference_to_the_rival_has_the_sign_of_the_main_line(good):
    run = load_run(good[0])
    rival_minus_grpo = run.evaluation["sft_longer"]["deltas"]["grpo"]["overall"]["mean"]
    sentence = next(s for _, s in headline(run).sentences if "its rival" in s)
    assert f"{-100 * rival_minus_grpo:+.1f}".replace("-", "\u2212") in sentence


def test_everything_wrong_is_named(trouble):
    run = load_run(trouble[0])
    found = " | ".join(f"{f.title}: {f.detail}" for f in findings(run))
    for words in (
        "1 row in quarantine", "truncated picture", "sft: 1 step skipped", "completions cut off", "grpo: hedging on",
        "multi choice answers got worse", "2 values of user rewards lost", "3 held-out answers cut off",
    ):  # fmt: skip
        assert words in found, words
    assert "Nothing." not in trouble[1]
    assert headline(run).title.startswith(("It learned, but", "It got worse", "No measurable"))


def test_groups_and_sources_are_told_apart(tmp_path):
    """Questions of two groups from two sources: how each stage does on each, and what it gained there."""
    folder = make_run(tmp_path / "run", questions=60, steps=5)
    for stage, block in list(load_run(folder).evaluation.items()):
        rows = [
            replace(r, group="primitive" if r.kind == "first" else "compositional", source=f"test_{r.kind}")
            for r in load_run(folder).rows[stage]
        ]
        if stage == "grpo":
            rows = [replace(r, correct=0.0 if r.group == "primitive" else r.correct) for r in rows]
        save_stage(folder, stage, rows, parent=block["parent"])
    run = load_run(folder)
    assert [grid.title for grid in accuracy_grids(run)] == ["Group", "Problem type"]
    found = {title: {line.name: line for line in lines} for title, lines in slices(run)}
    assert {title: list(lines) for title, lines in found.items()} == {
        "Group": ["compositional", "primitive"],
        "Source": ["test_count", "test_first", "test_seen"],
    }
    line = found["Group"]["primitive"]
    stages = ["before training", "sft", "grpo", "sft_longer (rival of grpo)"]
    assert line.n == 20 and [stage for stage, _, _ in line.cells] == stages
    _, accuracy, gain = line.cells[2]
    lost = run.evaluation["sft"]["by_group"]["primitive"]["accuracy"]
    assert accuracy == 0.0 and gain.startswith(f"\u2212{100 * lost:.1f} (\u2212")
    assert "grpo: primitive questions got worse" in [f.title for f in findings(run)]
    said = headline(run)
    level, sentence = next(s for s in said.sentences if s[1].startswith("primitive: "))
    assert level == "bad"
    assert f"{lost:.0%} \u2192 0% of 20 questions, chance 30.0%; grpo \u2212{100 * lost:.1f} (" in sentence
    # The first screen is about the compositional questions, and shows the primitive ones apart.
    blocks = [run.evaluation[stage]["by_group"]["compositional"] for stage in run.line]
    assert said.title.endswith(" \u2192 ".join(f"{block['accuracy']:.0%}" for block in blocks))
    assert said.under.startswith("Exact answers on 40 held-out compositional questions")
    assert [(ladder.name, ladder.n) for ladder in said.ladders] == [("compositional", 40), ("primitive", 20)]
    for ladder in said.ladders:
        shown = [block["by_group"][ladder.name] for block in run.evaluation.values()]
        assert [bar.accuracy for bar in ladder.bars] == [block["accuracy"] for block in shown]
        assert ladder.chance == run.evaluation["grpo"]["by_group"][ladder.name]["chance"]
    assert any(s.startswith("all together: ") and "of 60 questions" in s for _, s in said.sentences)
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Part by part" in text and "test first" in text and gain in text


def rewrite(folder, name: str, accuracy: list[float]) -> None:
    rows = load_run(folder).rows["sft"]
    changed = [type(r)(**{**r.__dict__, "correct": accuracy[i % len(accuracy)]}) for i, r in enumerate(rows)]
    save_stage(folder, name, changed, parent="sft")


def test_the_title_follows_the_interval_and_not_the_mean(tmp_path):
    folder = make_run(tmp_path / "run", questions=42, steps=5)
    (folder / "eval.json").unlink()
    samples = load_run(make_run(tmp_path / "other", questions=42, steps=5)).rows["before"]
    wrong = [type(r)(**{**r.__dict__, "correct": 0.0}) for r in samples]
    one = [type(r)(**{**r.__dict__, "correct": float(i == 0)}) for i, r in enumerate(samples)]
    save_stage(folder, "before", wrong)
    save_stage(folder, "sft", one, parent="before")
    assert headline(load_run(folder)).title.startswith("No measurable change")
    save_stage(folder, "grpo", wrong, parent="sft")
    assert headline(load_run(folder)).title.startswith("No measurable change")
    rewrite(folder, "sft", [1.0] * 20 + [0.0])
    save_stage(folder, "grpo", wrong, parent="sft")
    said = headline(load_run(folder))
    assert said.level == "bad" and said.title.startswith("It got worse in grpo: 0% \u2192 ")
    (folder / "eval.json").unlink()
    save_stage(folder, "before", wrong)
    save_stage(folder, "sft", one, parent="before")
    rewrite(folder, "before", [1.0])
    rewrite(folder, "sft", [0.0])
    assert headline(load_run(folder)).title.startswith("It got worse")


def test_answers_with_several_truths_are_exact_hedged_or_wrong(good):
    run = load_run(good[0])
    (part,) = hedging(run)  # one modality
    for share, stage in zip(part.shares, run.evaluation, strict=True):
        rows = [r for r in run.rows[stage] if r.hedge is not None]
        assert part.n == len(rows) > 0
        assert share.exact == sum(r.correct or 0.0 for r in rows) / len(rows)
        assert share.hedged == sum(r.hedge or 0.0 for r in rows) / len(rows)
    assert 'href="#hedging"' in good[1] and "hedged: only some of them" in good[1]


def test_a_run_that_is_still_running_has_a_report_too(tmp_path):
    folder = make_run(tmp_path / "run", questions=21, steps=8)
    for name in ("eval.json", "timing.json", "environment.json"):
        (folder / name).unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert "Not evaluated yet" in text and "Learning curves" in text
    only = tmp_path / "only"
    only.mkdir()
    (only / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": "sft", "loss": 1.0}) + "\n")
    text = write_report(only).read_text(encoding="utf-8")
    assert "Not evaluated" in text and "add eval.data" in text


def test_a_stages_rollouts_are_its_own(tmp_path):
    """Stages `x` and `x-2`, and more steps than the number's usual width."""
    (tmp_path / "completions").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    for name in ("x-000002", "x-1000001", "x-2-000001", "x-2-000003"):
        (tmp_path / "completions" / f"{name}.jsonl").write_text(json.dumps({"file": name}) + "\n")
    run = load_run(tmp_path)
    assert [lines[0]["file"] for lines in run.rollouts("x")] == ["x-000002", "x-1000001"]
    assert [lines[0]["file"] for lines in run.rollouts("x-2")] == ["x-2-000001", "x-2-000003"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run directory"):
        write_report(tmp_path)


def test_curves_take_every_number_once(good):
    run = load_run(good[0])
    assert len(run.metrics) == 120  # the half-written last line is not one of them
    stages = {s.name: s for s in stage_curves(run)}
    assert list(stages) == ["sft", "grpo", "sft_longer"]
    grpo = stages["grpo"]
    assert [c.title for c in grpo.curriculum] == ["Window of difficulty", "Groups so far"]
    assert [name for c in grpo.first if c.title == "Reward parts" for _, name, _ in c.legend] == [
        "blend",
        "format",
    ]
    assert "odd_number" in [c.title for c in grpo.later]  # a metric nobody planned for is still shown
    drawn = [name for c in [*grpo.first, *grpo.curriculum, *grpo.later] for _, name, _ in c.legend]
    assert len(drawn) == len(set(drawn)) == 26


def test_two_names_of_one_loss_are_one_line(tmp_path):
    """SFT's loss is its nll; where something is added to it (KL, say) both are drawn."""
    lines = [{"step": i, "stage": "same", "loss": 0.1 * i, "nll": 0.1 * i} for i in range(1, 4)]
    lines += [{"step": i, "stage": "other", "loss": 0.2 * i, "nll": 0.1 * i} for i in range(4, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    same, other = stage_curves(load_run(tmp_path))
    assert [name for _, name, _ in same.first[0].legend] == ["loss"]
    assert [name for _, name, _ in other.first[0].legend] == ["loss", "nll"]
    assert not same.later


def test_ticks_are_round_and_inside():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(3, 47) == [10, 20, 30, 40]
    assert ticks(-0.2, 0.21) == pytest.approx([-0.2, -0.1, 0, 0.1, 0.2])


def test_lines_are_shortened_by_means_and_smoothed_without_bias():
    points = [(float(i), float(i % 2)) for i in range(1000)]
    short = shorten(points, 100)
    assert len(short) == 100 and short[0] == (4.5, 0.5) and short[-1] == (994.5, 0.5)
    assert [y for _, y in smoothed([(i, 3.0) for i in range(50)])] == pytest.approx([3.0] * 50)


def test_chart_maps_values_to_the_right_places():
    svg = line_chart([Series("a", [(0, 0.0), (10, 1.0)], "c0")], label="a<b", bounds=(0, 1))
    assert 'd="M44.0 156.0L350.0 10.0"' in svg  # low left to high right
    assert 'aria-label="a&lt;b"' in svg
    flat = line_chart([Series("a", [(0, 2.0)], "c0")], label="one point")
    assert "nan" not in flat.lower() and "<circle" in flat
    assert "<svg" in line_chart([], label="empty")


def test_completion_is_cut_at_tags_and_nothing_is_lost():
    text = "<think>a <b></think><answer>1</answer> tail"
    cut = pieces(text)
    assert "".join(piece for _, piece in cut) == text
    assert [piece for tag, piece in cut if tag] == ["<think>", "</think>", "<answer>", "</answer>"]


def test_chosen_answers_cover_forms_and_difficulties(good):
    rows = load_run(good[0]).rows["grpo"]
    chosen = spread(rows, 6)
    assert len({r.id for r in chosen}) == 6
    assert sorted(r.kind for r in chosen) == ["count", "count", "first", "first", "seen", "seen"]
    assert min(r.difficulty or 0 for r in chosen) < 0.4 < 0.6 < max(r.difficulty or 0 for r in chosen)
