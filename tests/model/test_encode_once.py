"""Encoders under `encode_once`: the same logits and gradients as without it, and each distinct medium once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.data.loader import collate
from mmreason.model import encode_once as module
from mmreason.model import tower_call
from mmreason.model.encode_once import encode_once
from mmreason.model.family import forward_inputs
from mmreason.model.feature_cache import FeatureCache, Made
from mmreason.model.load import Loaded, load_model
from mmreason.model.tower_call import TowerCall
from mmreason.objective import sft_sample
from mmreason.types import Rendered
from tests.rollout.mixes import SENSES, model_of, prompts_of
from tests.tiny import KINDS, TEXTS, tiny_model_config

SEEING = ("assembled", *KINDS, "qwen2_audio", "qwen2_5_omni_thinker")
BIG = 2**30


@pytest.fixture(params=SEEING)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(kind: str, native_folder: Callable[[str], Path]) -> Loaded:
    return model_of(kind, native_folder)


def parts_that_learn(loaded: Loaded, *parts: str) -> None:
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(loaded.family.part_of(name) in parts)


def logits(loaded: Loaded, prompts: list[Rendered], model: Any = None) -> torch.Tensor:
    batch = collate([sft_sample(prompt) for prompt in prompts], 0)
    inputs = forward_inputs(loaded.family, batch, "cpu")
    out = (model or loaded.model)(**inputs, use_cache=False).logits
    return out[batch.attention_mask.bool()]


def twice(loaded: Loaded, kind: str) -> list[Rendered]:
    """Prompts of every medium that the model takes, and each of them a second time."""
    prompts = prompts_of(loaded, SENSES[kind])
    return [*prompts, *prompts[::-1]]


def gradients(loaded: Loaded, prompts: list[Rendered]) -> dict[str, torch.Tensor]:
    loaded.model.zero_grad()
    out = logits(loaded, prompts)
    torch.manual_seed(1)
    (out * torch.randn_like(out)).sum().backward()
    return {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}


def same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Every parameter's, to a relative 1e-4 (of a gradient that is nothing at all: to 1e-5)."""
    assert one.keys() == other.keys()
    return all(float((one[n] - other[n]).norm()) <= 1e-4 * float(one[n].norm()) + 1e-5 for n in one)


class Encoded:
    """Counts the media that the real towers encode; `blocks` those of a Qwen-VL tower."""

    def __init__(self, loaded: Loaded, model: Any = None) -> None:
        self.media = self.calls = 0
        self.hooks = [
            parent._modules[name].register_forward_pre_hook(self._count, with_kwargs=True)  # type: ignore[union-attr]
            for parent, name in module._towers(model or loaded.model, loaded.family)
        ]

    def _count(self, tower: Any, args: Any, kwargs: Any) -> None:
        main = args[0] if args else next(iter(kwargs.values()))
        each = next((kwargs[n] for n in ("grid_thw", "feature_lens") if n in kwargs), main)
        self.media += len(each)
        self.calls += 1

    def __enter__(self) -> Encoded:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def distinct_media(loaded: Loaded, prompts: list[Rendered]) -> int:
    """Pictures, frames (a whole film of Qwen-VL's) and, for each encoder, sounds of different content."""
    seen = set()
    for prompt in prompts:
        for name, tensor in prompt.media.items():
            grid = prompt.media.get(
                {"pixel_values": "image", "pixel_values_videos": "video"}.get(name, "") + "_grid_thw"
            )
            if name in ("pixel_values", "pixel_values_videos") or name.startswith("input_features"):
                pieces = tensor.split(1) if grid is None else tensor.split(grid.prod(-1).tolist())
                seen |= {(name.removesuffix("_videos"), p.numpy().tobytes()) for p in pieces}
    return len(seen)


# --- the same numbers


@pytest.mark.parametrize("learn", [(), ("vision", "audio", "projector", "llm"), ("projector", "llm")])
def test_logits_and_gradients_are_those_of_the_plain_way(
    loaded: Loaded, kind: str, learn: tuple[str, ...]
) -> None:
    parts_that_learn(loaded, *(learn or ("llm",)))
    prompts = twice(loaded, kind)
    plain = gradients(loaded, prompts)
    with torch.no_grad():
        values = logits(loaded, prompts)
    cache = FeatureCache(BIG)
    for _ in range(2):  # the second time out of the cache
        with encode_once(loaded.model, loaded.family, cache):
            with torch.no_grad():
                torch.testing.assert_close(logits(loaded, prompts), values, atol=1e-5, rtol=0)
            assert same_gradients(gradients(loaded, prompts), plain)
    assert any(loaded.family.part_of(name) == "llm" for name in plain)
    if learn[:1] == ("vision",):
        assert any(loaded.family.part_of(name) in ("vision", "audio") for name in plain)


def test_the_model_is_itself_again(loaded: Loaded) -> None:
    before = {name: id(m) for name, m in loaded.model.named_modules()}
    names = [name for name, _ in loaded.model.named_parameters()]
    with pytest.raises(KeyError), encode_once(loaded.model, loaded.family, FeatureCache(BIG)):
        assert [name for name, _ in loaded.model.named_parameters()] == names
        loaded.model.train()
        assert all(m.training for m in loaded.model.modules())
        raise KeyError
    assert {name: id(m) for name, m in loaded.model.named_modules()} == before
    assert all(m.training for m in loaded.model.modules())


# --- once


@pytest.mark.parametrize("learn", [("llm",), ("projector", "llm")])
def test_frozen_media_are_encoded_once_for_all_passes(
    loaded: Loaded, kind: str, learn: tuple[str, ...]
) -> None:
    """Rollout, old policy, update and reference, twice over; all rows twice."""
    parts_that_learn(loaded, *learn)
    reference = copy.deepcopy(loaded.model).requires_grad_(False)
    prompts = twice(loaded, kind)
    cache = FeatureCache(BIG)
    with Encoded(loaded) as mine, Encoded(loaded, reference) as theirs:
        for _ in range(2):
            with encode_once(loaded.model, loaded.family, cache), torch.no_grad():
                logits(loaded, prompts)
                logits(loaded, prompts[:2])
            with encode_once(reference, loaded.family, cache), torch.no_grad():
                logits(loaded, prompts, reference)
            with encode_once(loaded.model, loaded.family, cache):
                gradients(loaded, prompts)
    assert (mine.media, theirs.media) == (distinct_media(loaded, prompts), 0)


def kept(cache: FeatureCache) -> dict[tuple[str, str], dict[str, list[torch.Tensor]]]:
    return {key: made.fields for key, made in cache._made.items()}


@pytest.mark.parametrize("learn", [("llm",), ("projector", "llm")])
def test_frozen_media_are_encoded_side_by_side(
    loaded: Loaded, kind: str, learn: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at once as the bound says; the features are those of media one by one, and hold no others' memory."""
    parts_that_learn(loaded, *learn)
    prompts = twice(loaded, kind)
    caches, calls = [], []
    for bound in (0, 2**40):
        monkeypatch.setattr(tower_call, "AT_ONCE_ON_CPU", bound)
        caches.append(FeatureCache(BIG))
        with Encoded(loaded) as seen, encode_once(loaded.model, loaded.family, caches[-1]):
            gradients(loaded, prompts)
        calls.append(seen.calls)
    one, together = map(kept, caches)
    assert one.keys() == together.keys() and len(one) == distinct_media(loaded, prompts)
    towers = len(list(module._towers(loaded.model, loaded.family)))
    assert calls[0] == len(one) and calls[1] <= 2 * towers  # pictures and videos are two calls of one tower
    for key, fields in one.items():
        for name, parts in fields.items():
            for x, y in zip(parts, together[key][name], strict=True):
                torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)
                assert y.untyped_storage().nbytes() == y.numel() * y.element_size()


def test_batches_of_media_stay_within_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    call = TowerCall([{"": torch.zeros(1, n)} for n in (30, 30, 50, 200, 10)], {}, None, ())
    monkeypatch.setattr(tower_call, "AT_ONCE_ON_CPU", 110)
    assert list(call.in_batches([0, 1, 2, 3, 4])) == [[0, 1, 2], [3], [4]]
    assert list(call.in_batches([4, 1, 0])) == [[4, 1, 0]] and list(call.in_batches([])) == []


def test_media_of_encoders_that_learn(loaded: Loaded, kind: str) -> None:
    """Once for all rollouts and old log-probabilities of a step, once for each micro-batch of its update."""
    parts_that_learn(loaded, "vision", "audio", "projector", "llm")
    prompts = twice(loaded, kind)
    cache = FeatureCache(BIG)
    counts = []
    for _ in range(2):
        for grad in (False, True):
            with Encoded(loaded) as seen, encode_once(loaded.model, loaded.family, cache):
                with torch.set_grad_enabled(grad):
                    logits(loaded, prompts)
                    logits(loaded, prompts)
            counts.append(seen.media)
    once = distinct_media(loaded, prompts)
    assert counts == [once, 2 * once] * 2
    assert len(cache) == cache.bytes == 0  # nothing outlives the pass


@pytest.mark.parametrize("learn", [("llm",), ("projector", "llm")])
def test_other_weights_are_other_features(loaded: Loaded, kind: str, learn: tuple[str, ...]) -> None:
    parts_that_learn(loaded, *learn)
    prompts = twice(loaded, kind)
    cache = FeatureCache(BIG)
    before = None
    for _ in range(2):
        with torch.no_grad():
            plain = logits(loaded, prompts)
            with encode_once(loaded.model, loaded.family, cache):
                torch.testing.assert_close(logits(loaded, prompts), plain, atol=1e-5, rtol=0)
            assert before is None or not torch.allclose(before, plain, atol=1e-3)
            before = plain
            for parent, name in module._towers(loaded.model, loaded.family):
                for parameter in parent._modules[name].parameters():  # type: ignore[union-attr]
                    parameter.mul_(1.1)


# --- mutants


def weights_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FeatureCache, "owner", lambda self, encoder, without=(): f"{type(encoder)} {len(list(without))}"
    )


def test_a_name_without_weights_fails(
    native_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_do_not_matter(monkeypatch)
    with pytest.raises(AssertionError):
        test_other_weights_are_other_features(model_of("qwen2_vl", native_folder), "qwen2_vl", ("llm",))


def windows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of Qwen2.5-VL's windows are taken as they come."""
    monkeypatch.setattr(module, "DIGITS", 1)


def content_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "digest", lambda tensors, more="": str([t.shape for t in tensors]))


def first_medium_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    put = module._put_together
    monkeypatch.setattr(module, "_put_together", lambda made: put([made[0]] * len(made)))


@pytest.mark.parametrize("mutant", [windows_stay, content_is_ignored, first_medium_for_all])
def test_mutants_fail(
    mutant: Callable[[pytest.MonkeyPatch], None],
    native_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutant(monkeypatch)
    loaded = model_of("qwen2_5_vl", native_folder)
    with pytest.raises((AssertionError, RuntimeError)):
        test_logits_and_gradients_are_those_of_the_plain_way(loaded, "qwen2_5_vl", ("projector", "llm"))


# --- what it leaves alone


def test_dropout_in_a_tower_is_left_as_it_is(
    native_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_said", set())
    loaded = model_of("assembled", native_folder)
    parts_that_learn(loaded, "llm")
    layer = loaded.model.vision_tower.encoder.layers[0]
    layer.self_attn.dropout = 0.5
    loaded.model.train()
    cache = FeatureCache(BIG)
    prompts = prompts_of(loaded, ("i", "i"))
    with caplog.at_level(logging.WARNING), encode_once(loaded.model, loaded.family, cache), Encoded(loaded):
        for _ in range(2):
            logits(loaded, prompts)
    assert len(cache) == 0
    assert [r.getMessage() for r in caplog.records if r.name == module.__name__] == [
        "SiglipVisionModel encodes media for every row that asks: its training draws anew "
        "(encoder.layers.0.self_attn.dropout is 0.5)"
    ]
    loaded.model.eval()  # a rollout drops nothing
    with encode_once(loaded.model, loaded.family, cache), torch.no_grad():
        logits(loaded, prompts)
    assert len(cache) == 2


@pytest.mark.parametrize("trained", [True, False])
def test_dropout_of_an_adapter_is_of_every_row(trained: bool) -> None:
    """The config says nothing of it: one picture in two rows has other features in each, as without `encode_once`."""
    config = tiny_model_config().model_copy(update={"use_peft": True, "lora_r": 4, "lora_dropout": 0.5})
    loaded = load_model(config, texts=lambda: TEXTS, seed=0)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
        weight.requires_grad_(trained and "lora_" in name)
    loaded.model.eval()
    loaded.model.get_base_model().vision_tower.train()
    prompts = prompts_of(loaded, ("i",)) * 2
    cache = FeatureCache(BIG)
    torch.manual_seed(1)
    plain = logits(loaded, prompts)
    torch.manual_seed(1)
    with encode_once(loaded.model, loaded.family, cache):
        once = logits(loaded, prompts)
    assert torch.equal(plain, once) and len(cache) == 0
    first, second = once.view(2, -1, once.shape[-1])
    assert not torch.allclose(first, second, atol=1e-3)


def test_precision_is_part_of_the_name(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("assembled", native_folder)
    parts_that_learn(loaded, "llm")
    cache = FeatureCache(BIG)
    prompts = prompts_of(loaded, ("i",))
    with encode_once(loaded.model, loaded.family, cache), torch.no_grad():
        logits(loaded, prompts)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits(loaded, prompts)
    assert len(cache) == 2


def test_adapters_of_a_tower_are_part_of_its_name() -> None:
    """Adapters that are switched off make other features of the same weights."""
    config = tiny_model_config().model_copy(update={"use_peft": True, "lora_r": 4})
    loaded = load_model(config, texts=lambda: TEXTS, seed=0)
    loaded.model.eval()
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
        weight.requires_grad_("language_model" in name and "lora_" in name)
    prompts = prompts_of(loaded, ("i", "ii", "i"))
    cache = FeatureCache(BIG)
    seen = []
    with torch.no_grad():
        for _ in range(2):
            for context in (nullcontext(), loaded.model.disable_adapter()):
                with context:
                    plain = logits(loaded, prompts)
                    with encode_once(loaded.model, loaded.family, cache):
                        torch.testing.assert_close(logits(loaded, prompts), plain, atol=1e-5, rtol=0)
                    seen.append(plain)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert len(cache) == 2 * distinct_media(loaded, prompts)


def test_adapters_of_a_tower_learn_as_without() -> None:
    config = tiny_model_config().model_copy(update={"use_peft": True, "lora_r": 4})
    loaded = load_model(config, texts=lambda: TEXTS, seed=0)
    loaded.model.eval()
    prompts = [*(three := prompts_of(loaded, ("i", "ii", "i"))), *three]
    plain = gradients(loaded, prompts)
    assert any("vision_tower" in name and "lora_" in name for name in plain)
    with encode_once(loaded.model, loaded.family, FeatureCache(BIG)):
        assert same_gradients(gradients(loaded, prompts), plain)


# --- the bound


def made(rows: int) -> Made:
    return Made(dict, {"x": [torch.zeros(rows, 25)]})


def test_a_part_of_a_larger_tensor_is_kept_by_itself_and_counted_once() -> None:
    whole = torch.zeros(4, 25)
    for given in (whole, whole[1:3]):
        kept_ = Made(dict, {"x": [given[:]], "y": [given[:]]}).by_itself()
        (x,), (y,) = kept_.fields.values()
        assert x is y and x.untyped_storage().nbytes() == kept_.bytes == given.numel() * 4


def test_the_oldest_go_first_within_the_bound() -> None:
    cache = FeatureCache(400)
    for name in "abc":
        cache.put(("t", name), made(1))
    assert cache.bytes == 300 and cache.get(("t", "a")) is not None  # now b is the oldest
    cache.put(("t", "d"), made(2))
    assert cache.bytes == 400 and [n for n in "abcd" if cache.get(("t", n))] == ["a", "c", "d"]
    cache.put(("t", "e"), made(5))
    assert cache.get(("t", "e")) is None and cache.bytes <= 400
    cache.put(("t", "d"), made(1))
    cache.forget("t")
    assert (len(cache), cache.bytes) == (0, 0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    module._said.clear()
