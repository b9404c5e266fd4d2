"""Forked rollouts against transformers' own, against our loop without forks, and against a full forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmreason.model.load import Loaded, gradient_checkpointing, load_model
from mmreason.model.shared_fit import unshareable
from mmreason.objective import grpo_samples
from mmreason.render import Renderer
from mmreason.rollout import budget, forked, generate
from mmreason.rollout.forked_cache import ForkedCache, ForkedLayer
from mmreason.rollout.sampling import SamplingParams
from mmreason.train.distributed import make_backend
from mmreason.train.micro import Sharing
from mmreason.train.step import Objective, fixed_logprobs
from mmreason.types import Group, Rendered, Sample, Trajectory
from tests.rollout.mixes import ALL, SENSES, impatient, model_of, prompts_of, same_logprobs, written
from tests.rollout.test_ends import HYBRIDS
from tests.tiny import QWEN3, TEXTS, tiny_model_config

GREEDY = SamplingParams(14, greedy=True)
SAMPLED = SamplingParams(14, temperature=1.3)


@pytest.fixture(params=ALL)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(kind: str, native_folder: Callable[[str], Path]) -> Loaded:
    return model_of(kind, native_folder)


def fork(
    loaded: Loaded, prompts: list[Rendered], count: int, params: SamplingParams, **more: Any
) -> list[list[Trajectory]]:
    return forked.generate(loaded.model, loaded.family, impatient(loaded), prompts, count, params, **more)


def unforked(
    loaded: Loaded, prompts: list[Rendered], count: int, seeds: torch.Tensor
) -> list[list[Trajectory]]:
    """Our own loop row by row: nothing is shared, padded or dropped."""
    rows = [prompt for prompt in prompts for _ in range(count)]
    alone = SamplingParams(SAMPLED.max_new_tokens, temperature=SAMPLED.temperature, max_rows=1)
    done = [row for (row,) in fork(loaded, rows, 1, alone, seeds=seeds)]
    return [done[i : i + count] for i in range(0, len(done), count)]


def seeds_of(rows: int) -> torch.Tensor:
    return torch.arange(rows) * 7919 + 11


def test_greedy_is_transformers_own(loaded: Loaded, kind: str) -> None:
    """Text alone, pictures, films and sounds in one batch, ragged, some rows ending early."""
    assert unshareable(loaded.model) is None
    prompts = prompts_of(loaded, SENSES[kind])
    assert len({len(prompt) for prompt in prompts}) > 2
    renderer = impatient(loaded, ends=())
    for _ in range(2):
        theirs = generate.generate(loaded.model, loaded.family, renderer, prompts, 1, GREEDY)
        ours = forked.generate(loaded.model, loaded.family, renderer, prompts, 1, GREEDY)
        assert written(ours) == written(theirs)
        assert [(t.finish, t.text) for (t,) in ours] == [(t.finish, t.text) for (t,) in theirs]
        renderer.eos_ids += written(ours)[0][-1], written(ours)[-1][len(written(ours)[-1]) // 2]
    assert len({len(row) for row in written(ours)}) > 1


def test_sampled_rows_are_those_of_the_loop_without_forks(loaded: Loaded, kind: str) -> None:
    prompts = prompts_of(loaded, SENSES[kind])
    seeds = seeds_of(len(prompts) * 3)
    together, alone = fork(loaded, prompts, 3, SAMPLED, seeds=seeds), unforked(loaded, prompts, 3, seeds)
    assert written(together) == written(alone) and same_logprobs(together, alone)
    assert len({tuple(row) for row in written(together)}) > len(prompts)  # a group's rows differ
    assert len({len(row) for row in written(together)}) > 3


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_logprobs_are_those_of_a_full_forward(loaded: Loaded, kind: str, temperature: float) -> None:
    prompts = prompts_of(loaded, SENSES[kind])
    groups = fork(loaded, prompts, 2, SamplingParams(9, temperature=temperature, top_k=50))
    renderer = Renderer(loaded.processor)
    trainer: Any = SimpleNamespace(
        model=loaded.model,
        sharing=Sharing(),
        family=loaded.family,
        backend=make_backend("plain"),
        pad_id=renderer.pad_id,
        max_tokens=256,
        bf16=False,
    )
    objective = Objective(banned=renderer.placeholder_ids, temperature=temperature)
    for prompt, group in zip(prompts, groups, strict=True):
        rows = grpo_samples(
            Group(Sample("t:0", "t", ()), prompt, tuple(group)),
            [1.0, -1.0],
            loss_type="dapo",
            beta=0.0,
            max_completion_length=9,
            mask_truncated=False,
            group_id=0,
        )
        for row, line in zip(group, fixed_logprobs(loaded.model, trainer, rows, objective), strict=True):
            assert row.logprobs is not None
            torch.testing.assert_close(row.logprobs, line[len(prompt) :], atol=2e-5, rtol=0)


# --- what is done once


def test_prompts_are_prefilled_once_and_media_encoded_once(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("assembled", native_folder)
    prompts = prompts_of(loaded, ("i", "ii", "v"))
    columns: list[int] = []
    pictures: list[int] = []
    rows: list[int] = []

    def decoder(module: Any, args: Any, kwargs: Any) -> None:
        embeds = kwargs["inputs_embeds"]
        (columns if embeds.shape[1] > 1 else rows).append(embeds.shape[0] * embeds.shape[1])

    hooks = [
        loaded.model.language_model.model.register_forward_pre_hook(decoder, with_kwargs=True),
        loaded.model.vision_tower.register_forward_pre_hook(
            lambda module, args: pictures.append(len(args[0]))
        ),
    ]
    groups = fork(loaded, prompts, 5, SAMPLED)
    for hook in hooks:
        hook.remove()
    assert columns == [3 * max(map(len, prompts))]
    assert sum(pictures) == 3 + len(prompts[2].media["pixel_values_videos"])
    # the tail costs what it needs: a step forwards the rows that are not at their end
    lengths = [len(row) for row in written(groups)]
    assert rows == [sum(n > t for n in lengths) for t in range(1, max(lengths))]


def test_long_prompts_are_prefilled_in_parts(
    native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    prompts = prompts_of(loaded, SENSES["qwen2_5_vl"])
    whole = fork(loaded, prompts, 2, GREEDY)
    monkeypatch.setattr(budget, "PREFILL_TOKENS", 60)
    calls: list[int] = []
    hook = loaded.model.model.visual.register_forward_pre_hook(lambda *args: calls.append(1))
    parts = fork(loaded, prompts, 2, GREEDY)
    hook.remove()
    assert len(calls) > 1 and written(whole) == written(parts) and same_logprobs(whole, parts)


def test_rows_do_not_depend_on_how_many_are_decoded_at_once(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("qwen3_vl", native_folder)
    prompts = prompts_of(loaded, SENSES["qwen3_vl"])
    draws = []
    for max_rows in (256, 7, 1):
        torch.manual_seed(3)
        draws.append(fork(loaded, prompts, 3, SamplingParams(14, temperature=1.3, max_rows=max_rows)))
    assert written(draws[0]) == written(draws[1]) == written(draws[2])
    torch.manual_seed(4)
    assert written(fork(loaded, prompts, 3, SAMPLED)) != written(draws[0])


def test_greedy_draws_nothing_from_the_global_generator(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("assembled", native_folder)
    before = torch.get_rng_state()
    fork(loaded, prompts_of(loaded, ("i",)), 1, GREEDY)
    assert torch.equal(before, torch.get_rng_state())


# --- layers and adapters


def sliding(window: int) -> Loaded:
    llm = {**QWEN3, "use_sliding_window": True, "sliding_window": window}
    llm["layer_types"] = ["full_attention", "sliding_attention"]
    return load_model(tiny_model_config(llm=llm), texts=lambda: TEXTS, seed=0)


@pytest.mark.parametrize("window", [5, 24])
def test_sliding_layers(window: int) -> None:
    """A window that ends inside the completion, and one that ends inside the prompt (and the other way round)."""
    loaded = sliding(window)
    prompts = prompts_of(loaded, ("i", "", "ii"))
    assert unshareable(loaded.model) is None
    theirs = generate.generate(
        loaded.model, loaded.family, impatient(loaded, range(3, 250, 40)), prompts, 1, GREEDY
    )
    ours = forked.generate(
        loaded.model, loaded.family, impatient(loaded, range(3, 250, 40)), prompts, 1, GREEDY
    )
    assert written(ours) == written(theirs) and max(map(len, written(ours))) > 7


def test_a_window_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = sliding(5)
    prompts = prompts_of(loaded, ("i", "", "ii"))
    right = fork(loaded, prompts, 2, SAMPLED, seeds=seeds_of(6))
    attend = ForkedCache.attend
    monkeypatch.setattr(
        ForkedCache,
        "attend",
        lambda self, layer, q, k, v, scale, window: attend(self, layer, q, k, v, scale, None),
    )
    wrong = fork(loaded, prompts, 2, SAMPLED, seeds=seeds_of(6))
    assert not (written(right) == written(wrong) and same_logprobs(right, wrong))


def test_adapters(native_folder: Callable[[str], Path]) -> None:
    config = tiny_model_config().model_copy(update={"use_peft": True, "lora_r": 4})
    loaded = load_model(config, texts=lambda: TEXTS, seed=0)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    prompts = prompts_of(loaded, ("i", "", "ii"))
    theirs = generate.generate(loaded.model, loaded.family, impatient(loaded), prompts, 1, GREEDY)
    assert written(fork(loaded, prompts, 1, GREEDY)) == written(theirs)
    with loaded.model.disable_adapter():
        assert written(fork(loaded, prompts, 1, GREEDY)) != written(theirs)


def test_the_model_is_left_as_it_was(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("assembled", native_folder)
    config = loaded.model.get_decoder().config
    for training in (True, False):
        loaded.model.train(training)
        groups = fork(loaded, prompts_of(loaded, ("i",)), 2, SAMPLED)
        assert loaded.model.training is training and config._attn_implementation == "sdpa"
        assert not any(t.ids.is_inference() for g in groups for t in g)  # training goes on with them


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl", "qwen3_next"])
def test_recomputed_activations_leave_the_cache(kind: str, native_folder: Callable[[str], Path]) -> None:
    """A model that is trained with gradient checkpointing drops its cache in training; a rollout is out of that."""
    if kind in HYBRIDS:
        loaded = load_model(tiny_model_config(llm=HYBRIDS[kind]), texts=lambda: TEXTS, seed=0)
    else:
        loaded = model_of(kind, native_folder)
    prompts, seeds = prompts_of(loaded, ("i", "", "ii")), seeds_of(9)
    kept = fork(loaded, prompts, 3, SAMPLED, seeds=seeds)
    gradient_checkpointing(loaded.model, True)
    loaded.model.train()
    again = fork(loaded, prompts, 3, SAMPLED, seeds=seeds)
    assert written(again) == written(kept) and same_logprobs(again, kept) and loaded.model.training


# --- mutants


def wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    build = forked.ForkedCache
    monkeypatch.setattr(forked, "ForkedCache", lambda layers, mask, owner: build(layers, mask, owner.flip(0)))


def forgotten_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of the completion count tokens, without M-RoPE's delta."""
    prefill = forked._prefill

    def counted(*args: Any) -> Any:
        logits, positions, cache = prefill(*args)
        return logits, cache.mask.sum(-1).expand_as(positions), cache

    monkeypatch.setattr(forked, "_prefill", counted)


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = forked._prefill

    def shifted(*args: Any) -> Any:
        logits, positions, cache = prefill(*args)
        return logits, positions + 1, cache

    monkeypatch.setattr(forked, "_prefill", shifted)


def row_keeps_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished row leaves, but the keys of the one that takes its place stay behind."""
    monkeypatch.setattr(
        ForkedLayer,
        "move",
        lambda self, to, origin, rows: self.__dict__.update(keys=self.keys[:rows], values=self.values[:rows]),
    )


def prompt_keeps_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ForkedLayer,
        "move_prompts",
        lambda self, to, origin, n: self.__dict__.update(
            prompt_keys=self.prompt_keys[:n], prompt_values=self.prompt_values[:n]
        ),
    )


def owner_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows move, but are shown the prompt of the row whose place they take."""
    keep = ForkedCache.keep

    def forgetful(self: ForkedCache, alive: torch.Tensor) -> torch.Tensor:
        before = self.owner
        stay = keep(self, alive)
        if len(self.mask) == int(before.max()) + 1:
            self.owner = before[: len(stay)]
            self._arrange()
        return stay

    monkeypatch.setattr(ForkedCache, "keep", forgetful)


def padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    build = forked.ForkedCache
    monkeypatch.setattr(
        forked,
        "ForkedCache",
        lambda layers, mask, owner: build(layers, torch.ones_like(mask), owner),
    )


def siblings_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries come back from their prompt in another order than they went."""
    back = ForkedCache.back
    monkeypatch.setattr(ForkedCache, "back", lambda self, beside, heads: back(self, beside, heads).roll(1, 0))


MUTANTS = (
    wrong_order,
    off_by_one,
    row_keeps_its_slot,
    prompt_keeps_its_slot,
    owner_stays,
    padding_is_seen,
    siblings_are_mixed,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_fail(
    mutant: Callable[[pytest.MonkeyPatch], None],
    native_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    prompts = prompts_of(loaded, SENSES["qwen2_5_vl"])
    seeds = seeds_of(len(prompts) * 3)
    right = unforked(loaded, prompts, 3, seeds)
    mutant(monkeypatch)
    wrong = fork(loaded, prompts, 3, SAMPLED, seeds=seeds)
    assert not (written(right) == written(wrong) and same_logprobs(right, wrong))


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker"])
def test_a_forgotten_delta_fails(
    kind: str, native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model_of(kind, native_folder)
    prompts = prompts_of(loaded, SENSES[kind])
    right = fork(loaded, prompts, 1, GREEDY)
    forgotten_offset(monkeypatch)
    wrong = fork(loaded, prompts, 1, GREEDY)
    assert not (written(right) == written(wrong) and same_logprobs(right, wrong))
