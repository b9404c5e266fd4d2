"""How rows are put into batches: by number, by memory, and smaller after running out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.render import Renderer
from mmreason.rollout import budget, forked, generate
from mmreason.rollout.budget import Share, in_batches, out_of_memory, token_bytes
from mmreason.rollout.sampling import SamplingParams
from tests.rollout.mixes import SENSES, model_of, prompts_of, same_logprobs, written

LENGTHS = [30, 10, 20]


@pytest.fixture
def loaded(native_folder: Callable[[str], Path]) -> Any:
    return model_of("assembled", native_folder)


def batches(model: Any, *, shared: bool = True, count: int = 4, **limits: Any) -> list[list[Share]]:
    made: list[list[Share]] = []
    params = SamplingParams(5, **limits)
    in_batches(model, LENGTHS, count, params, made.append, shared=shared)
    return made


def test_whole_groups_shortest_first(loaded: Any) -> None:
    all_ = [Share(1, 0, 4), Share(2, 0, 4), Share(0, 0, 4)]
    assert batches(loaded.model) == [all_]
    assert batches(loaded.model, max_rows=11) == [all_[:2], all_[2:]]
    assert batches(loaded.model, max_rows=3) == [
        [part] for i in (1, 2, 0) for part in (Share(i, 0, 3), Share(i, 3, 4))
    ]


def test_tokens_of_keys_and_values(loaded: Any) -> None:
    """One Qwen3 layer of one head of 16 keeps 2 x 16 x 4 bytes of a token; the tiny model has two."""
    size = token_bytes(loaded.model)
    assert size == 2 * 2 * 16 * 4
    # two prompts padded to 20 and 8 rows of 5 new tokens
    assert batches(loaded.model, kv_bytes=80 * size) == [
        [Share(1, 0, 4), Share(2, 0, 4)],
        [Share(0, 0, 4)],
    ]
    assert len(batches(loaded.model, kv_bytes=79 * size)) == 3
    # the third prompt of 30: two rows of 5 beside it, and no more
    assert batches(loaded.model, kv_bytes=44 * size)[-2:] == [[Share(0, 0, 2)], [Share(0, 2, 4)]]
    # a budget that holds no row at all decodes them one by one
    assert len(batches(loaded.model, kv_bytes=1)) == 12
    # plain rows pay for their prompt each: four of 10 + 5 make 60
    assert batches(loaded.model, shared=False, kv_bytes=60 * size)[0] == [Share(1, 0, 4)]
    assert batches(loaded.model, shared=False, kv_bytes=59 * size)[0] == [Share(1, 0, 3)]


@pytest.mark.parametrize("engine", [forked.generate, generate.generate])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_running_out_halves_and_the_samples_stay(
    engine: Any,
    error: BaseException,
    loaded: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompts = prompts_of(loaded, SENSES["assembled"])
    seeds = torch.arange(len(prompts) * 3) * 7 + 1
    arguments = (loaded.model, loaded.family, Renderer(loaded.processor), prompts, 3, SamplingParams(8))
    whole = engine(*arguments, seeds)
    forward, sizes = loaded.model.language_model.forward, []

    def tight(**inputs: Any) -> Any:
        rows = len(inputs["inputs_embeds"])
        if rows > 5:
            sizes.append(rows)
            raise error
        return forward(**inputs)

    monkeypatch.setattr(loaded.model.language_model, "forward", tight)
    with caplog.at_level(logging.WARNING):
        parts = engine(*arguments, seeds)
    assert sizes and written(parts) == written(whole) and same_logprobs(parts, whole)
    said = [r.getMessage() for r in caplog.records if r.name == budget.__name__]
    assert len(said) == len(sizes) and "rollout.kv_cache_memory_bytes" in said[0]
    sizes.clear()
    assert written(engine(*arguments, seeds)) == written(whole)
    assert not sizes  # what was learned stays with the model


def test_a_single_row_that_does_not_fit_says_what_to_lower(loaded: Any) -> None:
    def never(batch: list[Share]) -> None:
        raise MemoryError

    with pytest.raises(
        ValueError, match="one row: a prompt of 10 tokens and up to 5 new.*max_completion_length"
    ):
        in_batches(loaded.model, LENGTHS, 4, SamplingParams(5), never, shared=True)


def test_other_errors_are_no_lack_of_memory(loaded: Any) -> None:
    def broken(batch: list[Share]) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        in_batches(loaded.model, LENGTHS, 4, SamplingParams(5), broken, shared=True)


def test_what_the_cpu_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
