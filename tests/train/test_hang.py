"""Two ranks whose rows have nothing in common go on together: 50 steps within a minute, to one process's parameters.

The first rank has pictures and the second text only; long films and short sounds; groups that write 60 tokens and
groups that write 2, decoded before every step. Without the guard (agreed micro-batches, encoders in one order, weights
gathered for a rollout) the same rows abort, time out or end elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import AST, WHISPER, tiny_assembled
from tests.train import engines
from tests.train.engines import Case, as_whole, difference, in_ranks, moved, result

TOLERANCE = 1e-6  # of any parameter after three steps, as in test_deepspeed
APART = ("pictures", "films", "lengths")
CASES = [Case(engine, rows, max_tokens=200) for engine in ("zero2", "zero3") for rows in APART]
DECODED_APART = [Case("zero3", rows, max_tokens=200, apart=True) for rows in ("mixed", "lengths")]
SHORT = [*(replace(CASES[i], steps=2) for i in (1, 3, 5)), replace(DECODED_APART[0], steps=1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that sees and hears with two audio encoders."""
    return tiny_assembled(tmp_path_factory.mktemp("hearing") / "model", audio=[WHISPER, AST])


@pytest.fixture(scope="module")
def short(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("short")
    assert in_ranks(model, out, SHORT) == [0, 0]
    return out


def check(model: Path, out: Path, case: Case) -> None:
    found = result(out, case)
    assert moved(model, found, case) > 1e-3
    assert difference(engines.alone(model, as_whole(case)), found) <= TOLERANCE * max(1, case.steps / 3)


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_two_steps(model: Path, short: Path, case: Case) -> None:
    check(model, short, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [replace(case, steps=50) for case in CASES], ids=lambda case: case.name)
def test_fifty_steps(model: Path, tmp_path: Path, case: Case) -> None:
    assert in_ranks(model, tmp_path, [case]) == [0, 0]
    check(model, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [replace(case, guard=False) for case in CASES], ids=lambda case: case.name)
def test_without_the_guard(model: Path, tmp_path: Path, case: Case) -> None:
    if in_ranks(model, tmp_path, [case], patience=10) == [0, 0]:
        assert difference(engines.alone(model, as_whole(case)), result(tmp_path, case)) > 1e-3


@pytest.mark.slow
def test_rollouts_of_weights_that_lie_apart(model: Path, tmp_path: Path) -> None:
    """Films and sounds on one rank and pictures on the other; long and short completions; prompts on one rank only."""
    cases = [*DECODED_APART, Case("zero3_offload", "lengths", max_tokens=200, apart=True)]
    assert in_ranks(model, tmp_path, cases) == [0, 0]
    for case in cases:
        check(model, tmp_path, case)


@pytest.mark.slow
def test_ranks_that_do_the_same_need_no_guard(model: Path, tmp_path: Path) -> None:
    """What ends the controls is that their ranks differ: rows that ask the same of both ranks go through."""
    cases = [Case(engine, "grpo", guard=False) for engine in ("zero2", "zero3")]
    assert in_ranks(model, tmp_path, cases) == [0, 0]
    for case in cases:
        check(model, tmp_path, case)
