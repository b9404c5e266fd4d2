"""How rows are put into batches: by number, by memory, and smaller after running out of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.model.load import load_model
from mmreason.render import Renderer
from mmreason.rollout import budget, forked, generate, in_step
from mmreason.rollout.budget import Kept, Share, capacities, held, in_batches, kept_by, out_of_memory
from mmreason.rollout.forked_cache import ForkedLayer, ForkedState
from mmreason.rollout.sampling import SamplingParams
from tests.rollout.mixes import SENSES, model_of, prompts_of, same_logprobs, written
from tests.rollout.test_ends import HYBRIDS
from tests.tiny import TEXTS, tiny_model_config

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
    kept = kept_by(loaded.model)
    size = kept.token
    assert kept == Kept(token=2 * 2 * 16 * 4, widest=16 * 4, state=0)
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
    # plain rows pay for their prompt each: four of 10 + 5 make 60, and a quarter while a tensor of the four grows
    assert batches(loaded.model, shared=False, kv_bytes=75 * size)[0] == [Share(1, 0, 4)]
    assert batches(loaded.model, shared=False, kv_bytes=74 * size)[0] == [Share(1, 0, 3)]


def test_buffers_double_up_to_the_limit() -> None:
    assert [capacities(n) for n in (5, 64, 65, 150)] == [[5], [64], [64, 65], [64, 128, 150]]


def storages(cache: Any) -> int:
    """Bytes of the different storages behind a cache's keys, values and states."""
    found: list[torch.Tensor] = []
    for layer in cache.layers:
        if isinstance(layer, ForkedState):
            found += [*layer.conv_states.values(), *layer.recurrent_states.values()]
        else:
            found += [layer.keys, layer.values, layer.prompt_keys, layer.prompt_values]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}.values())


@pytest.mark.parametrize("at_once", [4096, 60])
@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl", "qwen3_next"])
def test_what_is_counted_is_what_tensors_take(
    kind: str, at_once: int, native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below, at and above 64 tokens, and where a buffer doubles; while it does, the old one is there as well."""
    if kind in HYBRIDS:
        loaded = load_model(tiny_model_config(llm=HYBRIDS[kind]), texts=lambda: TEXTS, seed=0)
    else:
        loaded = model_of(kind, native_folder)
    monkeypatch.setattr(budget, "PREFILL_TOKENS", at_once)
    prompts = sorted(prompts_of(loaded, ("i", "", "ii")), key=len)
    lengths = list(map(len, prompts))
    batch = [Share(i, 0, 2) for i in range(len(prompts))]
    owner = torch.arange(len(prompts)).repeat_interleave(2)
    kept = kept_by(loaded.model)
    moving: list[int] = []
    moved = ForkedLayer._moved

    def watched(self: ForkedLayer, part: torch.Tensor, capacity: int) -> torch.Tensor:
        moving.append(part.nbytes)
        return moved(self, part, capacity)

    monkeypatch.setattr(ForkedLayer, "_moved", watched)
    for new in (1, 5, 63, 64, 65, 130):
        moving.clear()
        with torch.no_grad():
            _, _, cache = forked._prefill(loaded.model, loaded.family, 0, prompts, owner, new)
        for layer in cache.layers:
            if isinstance(layer, ForkedLayer):
                layer.fill(new - 1)
        states = len(prompts) * kept.state  # the prompts' own, gone once the rows have theirs
        wanted = storages(cache) + max(moving) + states
        told = held(kept, batch, lengths, SamplingParams(new), shared=True)
        assert told == wanted if new > 5 or at_once == 4096 else told >= wanted
    assert (kept.state > 0) == (kind in HYBRIDS)


def test_prompts_in_parts_are_there_twice_for_a_moment(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second of three prompts is put beside the first, its own prefill is still there."""
    monkeypatch.setattr(budget, "PREFILL_TOKENS", 1)
    prompts = sorted(prompts_of(loaded, ("i", "", "ii")), key=len)
    kept, lengths = kept_by(loaded.model), list(map(len, prompts))
    seen = []
    put = ForkedLayer.put

    def watched(self: ForkedLayer, start: int, end: int, prefilled: Any) -> None:
        parts = (self.prompt_keys, self.prompt_values, prefilled.keys, prefilled.values)
        seen.append(sum(part.untyped_storage().nbytes() for part in parts))
        put(self, start, end, prefilled)

    monkeypatch.setattr(ForkedLayer, "put", watched)
    with torch.no_grad():
        forked._prefill(loaded.model, loaded.family, 0, prompts, torch.arange(3), 1)
    batch = [Share(i, 0, 1) for i in range(3)]
    layers = len(seen) // 3
    assert held(kept, batch, lengths, SamplingParams(1), shared=True) == layers * max(seen)


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


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), ValueError),
        (RuntimeError("size mismatch"), RuntimeError),
    ],
    ids=["memory", "other"],
)
def test_ranks_in_step_name_what_helps(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[Exception]
) -> None:
    """They cannot try a smaller batch, as the others are inside this one."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(in_step, "decode_rows", fails)
    renderer, prompts = Renderer(loaded.processor), prompts_of(loaded, ["i"])
    message = (
        r"rollout of 2 rows, .*lower rollout.max_rows or set" if raised is ValueError else "size mismatch"
    )
    with pytest.raises(raised, match=message):
        in_step.generate(
            loaded.model,
            loaded.family,
            renderer,
            prompts,
            2,
            SamplingParams(5),
            largest=int,
            beside=lambda _: [],
        )


def test_what_the_cpu_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
