"""Quarantine: named once, counted by source, bounded, and exact over a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmreason.data.quarantine import Quarantine


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path, totals={"a": 10}, max_fraction=0.5)
    assert not path.exists()
    for _ in range(2):  # the same row comes again every epoch
        quarantine.add("a:1", "1.png", "half a picture", source="a")
    quarantine.add("a:1", "1.png", "no such file", source="b")
    assert [(r["source"], r["id"], r["medium"], r["reason"]) for r in lines(path)] == [
        ("a", "a:1", "1.png", "half a picture"),
        ("b", "a:1", "1.png", "no such file"),
    ]
    assert quarantine.counts() == {"a": 1, "b": 1}


def test_a_source_that_lost_too_many_rows_stops_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl", totals={"a": 10, "b": 100}, max_fraction=0.1)
    quarantine.add("a:1", "1.png", "torn", source="a")
    quarantine.add("b:1", "1.png", "torn", source="b")
    quarantine.check()
    quarantine.add("a:2", "2.png", "torn", source="a")
    with pytest.raises(
        ValueError, match=r"data.a: 2 of 10 rows .* 0.1 \(max_bad_fraction\). The first was a:1: torn"
    ):
        quarantine.check()


def test_resume_counts_what_the_checkpoint_knew_and_writes_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    first = Quarantine(path, totals={"a": 10})
    first.add("a:1", "1.png", "torn", source="a")
    state = json.loads(json.dumps(first.state_dict()))
    first.add("a:2", "2.png", "torn", source="a")  # after the checkpoint; then killed while it wrote a third
    with path.open("a") as file:
        file.write('{"source": "a", "id": "a:')
    second = Quarantine(path, totals={"a": 10})
    second.restore(state)
    assert second.counts() == {"a": 1}
    for i in (1, 2, 3):
        second.add(f"a:{i}", f"{i}.png", "torn", source="a")
    assert [row["id"] for row in lines(path)] == ["a:1", "a:2", "a:3"]
    assert second.counts() == {"a": 3}
    assert second.state_dict() != state


def test_processes_count_and_bound_what_all_of_them_met(tmp_path: Path) -> None:
    """Each of two ranks has lost 1 row of 10, the allowed share; together they have lost 2, and one row twice."""
    path = tmp_path / "q.jsonl"
    ranks = [Quarantine(path, totals={"a": 10}, max_fraction=0.1, writes=rank == 0) for rank in range(2)]
    for rank, quarantine in enumerate(ranks):
        quarantine.add(f"a:{rank}", "x.png", "torn", source="a")
        quarantine.add("both", "y.png", "torn", source="b")
        quarantine.check()
    fresh = [quarantine._fresh for quarantine in ranks]
    for quarantine in ranks:
        quarantine.share(lambda mine: fresh)
        assert quarantine.counts() == {"a": 2, "b": 1}
        with pytest.raises(ValueError, match="2 of 10 rows"):
            quarantine.check()
        quarantine.share(lambda mine: [mine, []])  # nothing is told twice
        assert quarantine.counts() == {"a": 2, "b": 1}
    assert sorted((row["source"], row["id"]) for row in lines(path)) == [
        ("a", "a:0"),
        ("a", "a:1"),
        ("b", "both"),
    ]


def test_only_one_process_touches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"source": "a", "id": "a:')  # being written by the other process
    quarantine = Quarantine(path, writes=False)
    quarantine.add("a:1", "1.png", "torn", source="a")
    quarantine.share(lambda mine: [mine])
    assert path.read_text() == '{"source": "a", "id": "a:'
