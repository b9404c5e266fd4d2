"""DDP and ZeRO 0 to 3 in two real processes: after three steps the parameters are those of one process and one batch.

SGD with momentum, since Adam hides a wrong factor. The rows of `mixed` are laid out so that one process has pictures
and text, the other films, sound and text. Largest differences seen: beside the tolerances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmreason.model.load import load_model
from mmreason.schema import ModelConfig
from tests.tiny import AST, KINDS, SOUND_KINDS, WHISPER, tiny_assembled
from tests.train import engines, small
from tests.train.engines import Case, as_whole, difference, in_ranks, moved, result

SGD, LORA, ADAMW = 1e-6, 5e-6, 5e-5  # seen: 4.8e-7, 1.9e-8, 7e-6
QUICK = [
    Case("zero1", "mixed"),
    Case("zero2", "mixed"),
    Case("zero2", "grpo", sharing="require"),
    Case(
        "zero2", "mixed", max_tokens=200, sharing="require"
    ),  # packed, and as many micro-batches by blank rows
    Case("zero2", "mixed", lora=True),
    Case("zero3", "mixed", max_tokens=200),  # one micro-batch on the first rank, three on the second
    Case("zero3", "mixed", max_tokens=200, then="text", poisoned=True),
]
UNTRAINED = Case("zero3", "mixed", steps=0)
SLOW = {
    "mixed": [Case(engine, "mixed") for engine in ("ddp", "zero0", "zero3")],
    "sft": [Case(f"zero{stage}", "sft") for stage in range(4)],
    "grpo": [Case(engine, "grpo") for engine in ("zero1", "zero2", "zero3")],
    "shared": [Case(engine, "grpo", sharing="require") for engine in ("ddp", "zero0", "zero1")],
    "packed": [
        Case(engine, "mixed", max_tokens=200, sharing="require") for engine in ("ddp", "zero0", "zero1")
    ],
    "lora": [Case(engine, "mixed", lora=True) for engine in ("ddp", "zero0", "zero1", "zero3")],
    "adamw": [Case(engine, "mixed", optimizer="adamw") for engine in ("ddp", "zero1", "zero2", "zero3")],
    "offload": [
        Case(engine, "mixed", optimizer=optimizer)
        for engine in ("zero2_offload", "zero3_offload")
        for optimizer in ("sgd", "adamw")
    ],
    "media vanish": [
        Case(engine, "mixed", then="text") for engine in ("zero1", "zero2", "zero2_offload", "zero3_offload")
    ],
    "not finite": [
        Case(engine, "mixed", poisoned=True)
        for engine in ("zero0", "zero1", "zero2", "zero2_offload", "zero3_offload")
    ],
    "50 steps of zero2": [Case("zero2", "mixed", max_tokens=200, steps=50)],
    "50 steps of zero3": [Case("zero3", "mixed", max_tokens=200, steps=50)],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that sees and hears with two audio encoders."""
    return tiny_assembled(tmp_path_factory.mktemp("hearing") / "model", audio=[WHISPER, AST])


@pytest.fixture(scope="module")
def quick(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quick")
    assert in_ranks(model, out, [*QUICK, UNTRAINED]) == [0, 0]
    return out


_whole: dict[tuple[Path, Case], dict[str, torch.Tensor]] = {}


def check(model: Path, out: Path, case: Case) -> None:
    whole = (model, as_whole(case))
    if whole not in _whole:
        _whole[whole] = engines.alone(*whole)
    found = result(out, case)
    assert moved(model, found, case) > 1e-3  # the steps did something, so equality means something
    bound = ADAMW if case.optimizer == "adamw" else LORA if case.lora else SGD
    assert difference(_whole[whole], found) <= bound * case.steps / 3


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_two_processes_are_one(model: Path, quick: Path, case: Case) -> None:
    check(model, quick, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_are_one_everywhere(model: Path, name: str, tmp_path: Path) -> None:
    assert in_ranks(model, tmp_path, SLOW[name]) == [0, 0]
    for case in SLOW[name]:
        check(model, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2", "zero3"])
def test_one_process_of_four_micro_batches_is_one(model: Path, engine: str, tmp_path: Path) -> None:
    cases = [Case(engine, rows, max_tokens=tokens) for rows in ("mixed", "grpo") for tokens in (1, 100_000)]
    assert in_ranks(model, tmp_path, cases, world=1) == [0]
    for case in cases:
        check(model, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_without_the_guard_it_fails(model: Path, engine: str, tmp_path: Path) -> None:
    """The control: ranks that run only their own encoders abort, wait in vain, or train something else."""
    case = replace(Case(engine, "mixed"), guard=False)
    codes = in_ranks(model, tmp_path, [case])
    if codes == [0, 0]:
        assert difference(engines.alone(model, as_whole(case)), result(tmp_path, case)) > 1e-3


def test_untrained_weights_come_back_to_the_bit(model: Path, quick: Path, tmp_path: Path) -> None:
    """Cut into pieces by ZeRO-3 and put together again; and what two ranks save of them is what one process saves."""
    assert difference(engines.start(model, UNTRAINED), result(quick, UNTRAINED)) == 0.0
    loaded = load_model(ModelConfig(model_name_or_path=str(model)), texts=lambda: [], seed=0)
    engines.save_plain(loaded.model, model, tmp_path / "alone")
    saved = quick / f"{UNTRAINED.name}-saved"
    assert small.same_weights(tmp_path / "alone", saved)
    _, info = AutoModelForImageTextToText.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *SOUND_KINDS])
def test_native_models(kind: str, native_folder: Callable[[str], Path], tmp_path: Path) -> None:
    cases = [Case("zero2", "mixed"), Case("zero3", "mixed", apart=True)]
    assert in_ranks(native_folder(kind), tmp_path, cases) == [0, 0]
    for case in cases:
        check(native_folder(kind), tmp_path, case)


def test_a_wrong_factor_would_show(model: Path, quick: Path) -> None:
    """The test's own eyes: half the rate, as averaging over two ranks would give, is far outside the tolerance."""
    case = Case("zero2", "mixed")
    found, start = result(quick, case), engines.start(model, case)
    halved = {name: start[name] + (found[name] - start[name]) / 2 for name in found}
    assert difference(engines.alone(model, as_whole(case)), halved) > 1e-2
