"""The words world: drills checked by a reader that knows nothing but the text, and lists that no test scene is in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmreason.data.rows import parse_row
from mmreason.data.worlds import make_world
from mmreason.data.worlds.words import GROUPS, TOLD

VERBS = ("moved", "hit", "turned", "flashed", "appeared", "vanished", "stayed")
Entry = tuple[str, str]  # place, words


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Rows of both splits: split -> rows."""
    out = tmp_path_factory.mktemp("words")
    return {split: _made(out / split, split) for split in ("train", "test")}


def _made(folder: Path, split: str, **settings: Any) -> list[dict[str, Any]]:
    path = make_world("words", folder, count=600, seed=3, split=split, **settings)
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def _text(row: dict[str, Any]) -> str:
    (part,) = row["messages"][0]["content"]
    return str(part["text"])


def _split(row: dict[str, Any]) -> tuple[str, str]:
    """The list and the question."""
    listed, question = _text(row).split(". ", 1)
    return listed, question


def _entries(listed: str) -> list[Entry]:
    """Entries in order; what has no place of its own has place "stayed"."""
    out = []
    for entry in listed.split(", "):
        place, _, words = entry.partition(" ")
        numbered = re.fullmatch(r"\d|[a-d]\d", place)
        out.append((place, words) if numbered else ("stayed", entry))
    return out


def _where(entries: list[Entry], term: str) -> str:
    """Places of the entries whose name (all before the verb) has every word of the term."""
    found = []
    for place, words in entries:
        name = re.split(rf" (?:{'|'.join(VERBS)})\b", words)[0].split()
        if all(word in name for word in term.split()):
            found.append(place)
    return " ".join(found) or "none"


def _clips(listed: str) -> tuple[list[Entry], list[Entry]]:
    first, second = listed.removeprefix("first ").split(", second ")
    return _entries(first), _entries(second)


def _heard(entries: list[Entry]) -> list[Entry]:
    return [(place, words) for place, words in entries if not set(words.split()) & set(VERBS)]


def _seen(entries: list[Entry]) -> dict[str, str]:
    return {place: words for place, words in entries if set(words.split()) & set(VERBS)}


def _expected(kind: str, listed: str, asked: list[str]) -> list[str]:
    if kind == "clips_find":
        first, second = _clips(listed)
        return [f"{t} first {_where(first, t)}, second {_where(second, t)}" for t in asked]
    entries = _entries(listed)
    if kind in ("picture_find", "sounds_find", "events_find"):
        return [f"{t} {_where(entries, t)}" for t in asked]
    if kind in ("picture_count", "sounds_count"):
        counted = {t: _where(entries, t) for t in asked}
        return [f"{t} {w} is {0 if w == 'none' else len(w.split())}" for t, w in counted.items()]
    if kind in ("picture_name", "sounds_name"):
        return [f"{place} {dict(entries)[place]}" for place in asked]
    if kind == "events_when":
        moments = {words: f" {place}" for place, words in entries if place != "stayed"}
        return [said + moments.get(said, "") for said in asked]
    if kind == "events_did":
        done = {v: [p or "stayed" for p, w in entries if f" {v}" in f" {w}"] for v in asked}
        return [f"{v} {' '.join(done[v]) or 'none'}" for v in asked]
    if kind == "events_who":
        names = {v: [w.split(f" {v}")[0] for _, w in entries if f" {v}" in f" {w}"] for v in asked}
        return [f"{v} {' '.join(names[v]) or 'none'}" for v in asked]
    heard, seen = _heard(entries), _seen(entries)
    if kind == "film_find":
        return [f"{t} {_where(heard, t)}" for t in asked]
    if kind == "film_sound":
        at = {said: place for place, said in seen.items()}
        return [f"{said} {at[said]} {dict(heard).get(at[said], 'none')}" for said in asked]
    assert kind == "film_at", kind
    out = []
    for term in asked:
        places = [] if (found := _where(heard, term)) == "none" else found.split()
        out.append(f"{term} " + (" ".join(f"{p} {seen.get(p, 'none')}" for p in places) or "none"))
    return out


@pytest.mark.parametrize("kind", GROUPS["drill"])
def test_a_reader_of_the_list_finds_the_same(rows: dict[str, list[dict[str, Any]]], kind: str) -> None:
    drilled = [row for row in rows["train"] if row["kind"] == kind]
    assert len(drilled) > 10
    for row in drilled:
        listed, question = _split(row)
        asked = question.split(": ")[1].removesuffix(".").split(", ")
        assert row["solution"] == ", ".join(_expected(kind, listed, asked)), _text(row)


def test_both_what_is_there_and_what_is_not_is_asked_for(rows: dict[str, list[dict[str, Any]]]) -> None:
    found = [row["solution"].split(", ") for row in rows["train"] if row["kind"] == "sounds_find"]
    missing = sum(f.endswith(" none") for one in found for f in one)
    assert 0.2 < missing / sum(map(len, found)) < 0.6


def test_thoughts_begin_with_the_list(rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["train"] + rows["test"]:
        listed, _ = _split(row)
        assert f"<caption>{listed}</caption>" in row["rationale"]["structured"]


def test_no_list_is_in_both_splits(rows: dict[str, list[dict[str, Any]]]) -> None:
    train, test = ({_split(row)[0] for row in rows[split]} for split in ("train", "test"))
    assert not train & test


def test_rows_have_no_media_and_can_be_read(rows: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    sample = parse_row(rows["train"][0], source="words", line=1, root=str(tmp_path))
    assert (sample.modality, sample.media) == ("text", ())


def test_kinds_that_need_the_medium_are_not_told(tmp_path: Path) -> None:
    told = _made(tmp_path / "told", "train", kinds=["told"])
    texts = [_split(row)[1] for row in told]
    assert {row["kind"] for row in told} == {f"told_{one.name}" for one in TOLD}
    for needs in ("soft or loud", "louder", "list the sounds.", "what do you hear"):
        assert not [text for text in texts if needs in text]


def test_an_impossible_difficulty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give no question"):
        _made(tmp_path / "none", "train", kinds=["sounds_find"], difficulty=(0.99, 1.0))
