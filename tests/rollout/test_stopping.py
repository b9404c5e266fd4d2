"""Stop strings: where they end a row, in the unit that looks for them and in both engines alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.rollout import forked, generate
from mmreason.rollout.sampling import SamplingParams
from mmreason.rollout.stopping import StopStrings
from mmreason.types import Trajectory
from tests.rollout.mixes import SENSES, impatient, model_of, prompts_of, written

PIECES = ["<ans", "wer>", "a", "b</", "answer", "> c", "", "é"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[i] for i in ids)


@pytest.mark.parametrize(
    "strings, ids, end",
    [
        (["</answer>"], [0, 1, 2, 3, 4, 5, 2], 6),  # over three tokens, and it ends inside the last of them
        (["</answer>"], [0, 1, 2, 3, 4, 2], None),
        (["é", "wer>"], [2, 7, 0, 1], 2),  # whichever comes first
        (["a"], [0], 1),  # in the middle of a token
        (["r> c"], [4, 6, 5], 3),  # an empty token in between
        ([], [0, 1, 2], None),
    ],
)
def test_the_token_that_completes_a_string(strings: list[str], ids: list[int], end: int | None) -> None:
    stop = StopStrings(strings, decode)
    assert stop.end(ids) == end
    whole = next((n for n in range(1, len(ids) + 1) if any(s in decode(ids[:n]) for s in strings)), None)
    assert whole == end


def test_what_stands_before_the_start_is_not_found_again() -> None:
    stop = StopStrings(["wer>"], decode)
    assert stop.end([0, 1, 2, 2], 2) is None and stop.end([0, 1, 2, 1], 2) == 4


def test_a_letter_whose_bytes_lie_in_two_tokens() -> None:
    parts = {0: b"\xc3", 1: b"\xa9", 2: b"a"}
    stop = StopStrings(["é"], lambda ids: b"".join(parts[i] for i in ids).decode("utf-8", "replace"))
    assert stop.end([2, 0, 1, 2]) == 3 and stop.end([2, 0, 2, 1]) is None


def both(
    loaded: Any, kind: str, params: Callable[[tuple[str, ...]], SamplingParams], stop: tuple[str, ...]
) -> tuple[list[list[Trajectory]], list[list[Trajectory]]]:
    prompts = prompts_of(loaded, SENSES[kind][:4])
    arguments = (loaded.model, loaded.family, impatient(loaded, ends=()), prompts)
    seeds = torch.arange(len(prompts) * 2) * 101
    return (
        generate.generate(*arguments, 2, params(stop), seeds),
        forked.generate(*arguments, 2, params(stop), seeds),
    )


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl"])
@pytest.mark.parametrize("greedy", [True, False])
def test_rows_end_behind_it_in_both_engines(
    kind: str, greedy: bool, native_folder: Callable[[str], Path]
) -> None:
    loaded = model_of(kind, native_folder)

    def params(stop: tuple[str, ...]) -> SamplingParams:
        return SamplingParams(16, temperature=1.2, greedy=greedy, stop=stop)

    free, same = both(loaded, kind, params, ())
    assert written(free) == written(same)
    rows = [t for group in free for t in group]
    # two letters out of the middle of a row, over a border of tokens, and a single one
    places = [len(impatient(loaded).decode(t.ids[: len(t) // 2])) for t in (rows[0], rows[-1])]
    stop = (rows[0].text[places[0] - 1 : places[0] + 1], rows[-1].text[places[1]])
    plain, forks = both(loaded, kind, params, stop)
    assert written(plain) == written(forks)
    ended = 0
    for before, row, other in zip(
        rows, *([t for g in side for t in g] for side in (plain, forks)), strict=True
    ):
        assert (row.text, row.finish) == (other.text, other.finish)
        assert row.ids.tolist() == before.ids[: len(row)].tolist()
        if any(s in before.text for s in stop):
            ended += row.finish == "stop" and len(row) <= len(before)
            assert any(s in row.text for s in stop)
            assert not any(s in impatient(loaded).decode(row.ids[:-1]) for s in stop)
            assert other.logprobs is not None and len(other.logprobs) == len(other)
        else:
            assert (row.text, row.finish) == (before.text, before.finish)
    assert ended >= 2


def test_looks_that_are_seldom_find_the_same_ends(
    native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an accelerator the rows are looked at every few steps."""
    loaded = model_of("qwen2_vl", native_folder)

    def params(stop: tuple[str, ...]) -> SamplingParams:
        return SamplingParams(21, temperature=1.2, stop=stop)

    often = both(loaded, "qwen2_vl", params, ("e", "r"))[1]
    start = forked._Rows.start

    def seldom(self: Any, logits: torch.Tensor) -> None:
        start(self, logits)
        self.every = 8

    monkeypatch.setattr(forked._Rows, "start", seldom)
    rare = both(loaded, "qwen2_vl", params, ("e", "r"))[1]
    assert written(often) == written(rare) and len({len(row) for row in written(rare)}) > 2
    assert [t.finish for g in often for t in g] == [t.finish for g in rare for t in g]
