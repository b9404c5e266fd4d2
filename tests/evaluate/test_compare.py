"""The paired bootstrap, stored blocks, the table, the loop over batches, and completions scored again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from rich.console import Console

from mmreason.evaluate import (
    EvalRow,
    compare,
    crossed_bootstrap,
    evaluate,
    gain_table,
    limit_evenly,
    paired_bootstrap,
    read_eval,
    read_rows,
    save_stage,
    score,
    table,
    write_rows,
)
from mmreason.types import Message, Part, Sample


def row(number: int, correct: float | None, **changes) -> EvalRow:
    values = {
        "id": f"r:{number}", "source": "s", "modality": "image", "problem_type": "numeric", "kind": "count",
        "difficulty": number / 10, "question": "How many?", "options": (), "solution": "2", "completion": "2",
        "correct": correct, "soft": correct, "think": True, "format": 1.0, "hedge": None, "length": 3,
    }  # fmt: skip
    return EvalRow(**{**values, **changes})


def test_bootstrap_of_a_constant_difference_has_no_width():
    assert paired_bootstrap([0, 0, 0], [1, 1, 1]) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_bootstrap_interval_matches_the_binomial():
    # 100 questions, 30 won and 10 lost: mean 0.2, variance of one difference 0.4 - 0.04, so +- 1.96 * 0.06;
    # resampling the two models apart would give +- 0.131
    before = [0.0] * 30 + [1.0] * 10 + [1.0] * 60
    after = [1.0] * 30 + [0.0] * 10 + [1.0] * 60
    out = paired_bootstrap(before, after, seed=3)
    assert out["mean"] == pytest.approx(0.2)
    assert out["low"] == pytest.approx(0.2 - 0.1176, abs=0.008)
    assert out["high"] == pytest.approx(0.2 + 0.1176, abs=0.008)
    assert out == paired_bootstrap(before, after, seed=3)


def test_bootstrap_refuses_rows_that_do_not_pair():
    with pytest.raises(ValueError, match="same rows twice; got 1 and 2"):
        paired_bootstrap([1], [1, 0])
    with pytest.raises(ValueError, match="got 0 and 0"):
        paired_bootstrap([], [])


def test_crossed_bootstrap_of_one_seed_is_the_paired_one():
    difference = [1.0] * 30 + [-1.0] * 10 + [0.0] * 60
    crossed = crossed_bootstrap([difference])
    paired = paired_bootstrap([0.0] * 100, difference)
    assert crossed["mean"] == paired["mean"] == pytest.approx(0.2)
    assert crossed["low"] == pytest.approx(paired["low"], abs=0.01)
    assert crossed["high"] == pytest.approx(paired["high"], abs=0.01)


def test_crossed_bootstrap_counts_what_another_seed_would_give():
    # two seeds that contradict each other on every question: each of the four draws of two seeds has chance 1/4
    assert crossed_bootstrap([[1.0] * 50, [-1.0] * 50]) == {"mean": 0.0, "low": -1.0, "high": 1.0}
    # three seeds, one that gains nothing: mean 2/3, and the draw that holds it thrice has chance 1/27 > 2.5%
    out = crossed_bootstrap([[1.0] * 50, [1.0] * 50, [0.0] * 50])
    assert out["mean"] == pytest.approx(2 / 3) and out["low"] == 0.0 and out["high"] == 1.0


def test_crossed_bootstrap_refuses_an_empty_table():
    with pytest.raises(ValueError, match="at least one seed and one question"):
        crossed_bootstrap([])
    with pytest.raises(ValueError, match="at least one seed and one question"):
        crossed_bootstrap([[], []])


def test_compare_pairs_by_id_and_leaves_out_what_only_one_side_knows():
    before = [row(0, 0.0), row(1, 1.0), row(2, None), row(3, 0.0)]
    after = [row(3, 1.0), row(1, 1.0), row(2, 1.0), row(0, 1.0), row(9, 0.0)]
    out = compare(before, after)
    assert out["overall"]["n"] == 3 and out["overall"]["mean"] == pytest.approx(2 / 3)
    assert set(out["by_problem_type"]) == {"numeric"}
    assert compare([row(0, 1.0)], [row(1, 1.0)]) == {}


def test_stages_are_stored_in_order_with_differences_and_replaced_in_place(tmp_path):
    save_stage(tmp_path, "before", [row(i, 0.0) for i in range(4)])
    save_stage(tmp_path, "sft", [row(i, float(i < 2)) for i in range(4)], parent="before")
    save_stage(tmp_path, "grpo", [row(i, 1.0) for i in range(4)], parent="sft")
    save_stage(tmp_path, "sft", [row(i, float(i < 3)) for i in range(4)], parent="before")
    stored = read_eval(tmp_path)
    assert list(stored) == ["before", "sft", "grpo"]
    assert stored["sft"]["overall"]["accuracy"] == 0.75
    assert list(stored["sft"]["deltas"]) == ["before"]
    assert stored["grpo"]["deltas"]["before"]["overall"]["mean"] == 1.0
    assert stored["grpo"]["parent"] == "sft" and stored["grpo"]["rows"] == "eval/grpo.jsonl"
    assert not list(tmp_path.rglob(".*"))  # nothing half-written stays
    assert json.loads((tmp_path / "eval.json").read_text()) == stored


def test_rows_survive_the_disk(tmp_path):
    rows = [row(0, 1.0, completion="a\u2028b\n</script>", evidence=({"box": [0, 1, 2, 3], "label": "é"},))]
    write_rows(tmp_path / "eval" / "x.jsonl", rows)
    assert read_rows(tmp_path / "eval" / "x.jsonl") == rows


def test_table_shows_chance_and_the_gain_over_the_parent(tmp_path):
    for name, good, parent in (
        ("before", 0, None),
        ("sft", 20, None),
        ("more", 22, "sft"),
        ("grpo", 40, "sft"),
    ):
        save_stage(tmp_path, name, [row(i, float(i < good), hedge=False) for i in range(40)], parent=parent)
    console = Console(width=80, record=True, file=open(tmp_path / "out", "w"))
    console.print(table(read_eval(tmp_path)))
    text = console.export_text()
    assert "100.0" in text and text.count("+50.0") == 2 and text.count("+5.0") == 1
    assert "easy 0.00-1.20" in text and "hedging" in text
    assert table({}).row_count == 0


def test_gains_are_paired_inside_each_group_modality_and_source(tmp_path):
    """Ten compositional pictures gain half, ten compositional sounds nothing, ten primitive pictures lose a fifth."""
    asked = [
        row(i, 1.0, group=group, modality=modality, source=f"{group}_{modality}")
        for group, modality in (
            ("compositional", "image"),
            ("compositional", "audio"),
            ("primitive", "image"),
        )
        for i in range(10)
    ]
    after = [replace(r, correct=float(not (i >= 20 and i % 5 == 0))) for i, r in enumerate(asked)]
    save_stage(tmp_path, "sft", [replace(r, correct=float(i >= 10 or i % 2)) for i, r in enumerate(asked)])
    save_stage(tmp_path, "grpo", after, parent="sft")
    stored = read_eval(tmp_path)
    delta = stored["grpo"]["deltas"]["sft"]
    gains = {
        k: {name: d["mean"] for name, d in delta[k].items()} for k in ("by_group", "by_modality", "by_source")
    }
    assert gains["by_group"] == {"compositional": pytest.approx(0.25), "primitive": pytest.approx(-0.2)}
    assert gains["by_modality"] == {"audio": 0.0, "image": pytest.approx(0.15)}
    assert gains["by_source"] == {
        "compositional_audio": 0.0,
        "compositional_image": 0.5,
        "primitive_image": pytest.approx(-0.2),
    }
    assert (
        delta["by_source"]["compositional_image"]["low"]
        > 0.0
        == delta["by_source"]["compositional_audio"]["high"]
    )
    console = Console(width=80, record=True, file=open(tmp_path / "out", "w"))
    console.print(table(stored))
    console.print(gain_table(stored))
    text = console.export_text()
    assert text.count("compositional_image") == 2 and "grpo on sft" in text
    assert "+25.0 [" in text and "-20.0 [" in text and "+0.0 [0.0,\u00a00.0]" in text
    one = tmp_path / "one"
    save_stage(one, "before", [row(0, 0.0)])
    save_stage(one, "sft", [row(0, 1.0)])
    assert gain_table(read_eval(one)) is None  # the main table says it all


def samples(count: int, source: str = "s") -> list[Sample]:
    message = Message("user", (Part("text", text="How many?"),))
    return [
        Sample(f"{source}:{i}", source, (message,), solution=str(i), problem_type="numeric")
        for i in range(count)
    ]


def test_evaluate_keeps_order_over_batches_and_leaves_out_the_unreadable():
    sizes: list[int] = []
    seen: list[int] = []

    def generate(chosen):
        sizes.append(len(chosen))
        return [
            None if s.id == "s:3" else (f"<think></think><answer>{s.solution}</answer>", 7) for s in chosen
        ]

    rows = evaluate(samples(5), generate, batch_size=2, progress=seen.append)
    assert sizes == [2, 2, 1] and seen == [2, 4, 5]
    assert [r.id for r in rows] == ["s:0", "s:1", "s:2", "s:4"]
    assert all(r.correct == 1.0 and not r.think and r.length == 7 for r in rows)


def test_evaluate_refuses_a_generator_that_loses_answers_and_an_empty_set():
    with pytest.raises(ValueError, match="1 answers for 2 questions"):
        evaluate(samples(2), lambda chosen: [("", 0)])
    with pytest.raises(ValueError, match="eval.data"):
        evaluate([], lambda chosen: [])


def test_limit_is_even_over_sources_and_spaced_inside_them():
    chosen = limit_evenly({"a": samples(10, "a"), "b": samples(2, "b")}, 6)
    assert [s.id for s in chosen] == ["a:0", "a:2", "a:5", "a:7", "b:0", "b:1"]
    assert len(limit_evenly({"a": samples(3)}, None)) == 3 and len(limit_evenly({"a": samples(3)}, 99)) == 3


def test_score_judges_texts_and_groups_by_name_or_by_file(tmp_path):
    rows = [
        {
            "completion": "<answer>A</answer>",
            "solution": "A,C",
            "problem_type": "multi_choice",
            "options": ["x", "y", "z"],
        },
        {
            "id": "g",
            "completion": ["<answer>2</answer>", "<answer>3</answer>"],
            "solution": "3",
            "problem_type": "numeric",
        },
    ]
    out = score(rows, "subset")
    assert out["rows"] == [
        {"id": "row:1", "reward": 0.5, "accuracy": 0.0},
        {"id": "g", "reward": [0.0, 1.0], "accuracy": [0.0, 1.0]},
    ]
    assert out["n"] == 3 and out["mean"] == pytest.approx(0.5) and out["accuracy"] == pytest.approx(1 / 3)
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def length(completions, **_):\n    return [len(c) if 'A' in c else 'bad' for c in completions]\n"
    )
    out = score(rows, f"{mine}:length")
    assert out["rows"][0]["reward"] == 18.0 and out["rows"][1]["reward"] == [None, None]
    assert len(out["problems"]) == 2 and out["n"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": None}, "row 1: completion is NoneType"),
        ({"problem_type": "essay"}, "row 1: problem_type 'essay'; it is one of single_choice"),
        ({"solution": None}, "row 1: no 'solution'"),
    ],
)
def test_score_names_the_bad_row(change, message):
    good = {"completion": "x", "solution": "x", "problem_type": "text"}
    with pytest.raises(ValueError, match=message):
        score([{**good, **change}], "exact")
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        score([good], "exakt")
