"""One prompt for all its completions: values and every gradient as those of rows by themselves, on every kind of model.

Measured here: log-probabilities within 1e-6 (allowed 2e-5), gradients within 1.1e-5 relative (allowed 1e-4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.data.media import decode, limits_of
from mmreason.model.load import Loaded, gradient_checkpointing, load_model
from mmreason.model.shared_fit import Unfit, untrainable
from mmreason.model.shared_rows import beginning
from mmreason.render import Renderer
from mmreason.schema import ModelConfig
from mmreason.types import MediumRef, Message, Part, Rendered, Sample
from tests.data.clips import mp4
from tests.model.groups import apart, packed_of, plain, rows_of, shared, with_adapters
from tests.rollout.mixes import ALL, SENSES, model_of, prompts_of
from tests.tiny import QWEN3, TEXTS, tiny_model_config

Folder = Callable[[str], Path]
VALUES, GRADIENTS = 2e-5, 1e-4
RAGGED = [5, 1, 9, 3]
SLIDING: dict[str, dict[str, Any]] = {
    "qwen2": {**QWEN3, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1},
    "gemma3_text": {**QWEN3, "layer_types": ["sliding_attention", "full_attention"]},
}


def groups_of(loaded: Loaded, media: tuple[str, ...]) -> list[list[Rendered]]:
    """A group of two to four ragged rows on each prompt."""
    prompts = prompts_of(loaded, media)
    return [rows_of(loaded, prompt, RAGGED[: 2 + i % 3], i) for i, prompt in enumerate(prompts)]


def assert_equal(loaded: Loaded, groups: list[list[Rendered]], **scoring: Any) -> None:
    values, gradient, worst = apart(plain(loaded, groups, **scoring), shared(loaded, groups, **scoring))
    assert values <= VALUES and gradient <= GRADIENTS, (values, gradient, worst)


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_of_model_and_medium(kind: str, native_folder: Folder) -> None:
    """Pictures, two of them, films, sounds, and none, all groups in one packed row and each by itself."""
    loaded = model_of(kind, native_folder)
    loaded.model.train()
    assert untrainable(loaded.model) is None
    groups = groups_of(loaded, SENSES[kind])
    assert_equal(loaded, groups, banned_ids=loaded.family.placeholder_ids, temperature=0.7)
    for group in groups:
        assert_equal(loaded, [group])


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_film_longer_than_it_is_wide(kind: str, native_folder: Folder) -> None:
    """Its last moments stand behind the place where text goes on in some families; the model itself is asked."""
    loaded = load_model(ModelConfig(model_name_or_path=str(native_folder(kind))), texts=lambda: [], seed=0)
    film = MediumRef("video", "long.mp4", content=mp4(40, fps=2))
    question = (Part("video", medium=0), Part("text", text="how many red things"))
    sample = Sample("t:0", "t", (Message("user", question),), (film,))
    decoded = decode(film, limits_of(processor=loaded.processor))
    prompt = Renderer(loaded.processor).prompt(sample, [decoded])
    grid = prompt.media["video_grid_thw"][0]
    assert int(grid[0]) >= 8
    assert_equal(loaded, [rows_of(loaded, prompt, RAGGED)])


@pytest.mark.parametrize("window", [2, 8, 64])
@pytest.mark.parametrize("llm", SLIDING)
def test_sliding_windows_count_logical_distance(llm: str, window: int) -> None:
    """Windows shorter than a completion, than the prompt, and longer than either; one layer sees everything."""
    config = {**SLIDING[llm], "model_type": llm, "sliding_window": window, "initializer_range": 0.2}
    loaded = load_model(tiny_model_config(llm=config), texts=lambda: TEXTS, seed=0)
    loaded.model.train()
    kinds = loaded.model.get_decoder().config.layer_types
    assert set(kinds) == {"full_attention", "sliding_attention"}
    assert_equal(loaded, groups_of(loaded, ("", "i", "ii")))


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl", "qwen3_vl"])
def test_recomputed_activations_and_adapters(kind: str, native_folder: Folder) -> None:
    loaded = model_of(kind, native_folder)
    groups = groups_of(loaded, SENSES[kind][:3])
    adapted = with_adapters(loaded)
    assert_equal(adapted, groups)
    gradient_checkpointing(adapted.model, True)
    adapted.model.enable_input_require_grads()
    assert_equal(adapted, groups)


@pytest.mark.parametrize("kind", ["assembled", "qwen2_vl", "qwen3_vl"])
def test_recomputed_activations(kind: str, native_folder: Folder) -> None:
    loaded = model_of(kind, native_folder)
    loaded.model.train()
    groups = groups_of(loaded, SENSES[kind][:5])
    kept = shared(loaded, groups)
    gradient_checkpointing(loaded.model, True)
    assert_equal(loaded, groups)
    values, gradient, _ = apart(kept, shared(loaded, groups))
    assert values == 0.0 and gradient <= 1e-6  # the order of sums over the prompt's parts may differ


def test_bf16_is_as_near_as_its_rounding(native_folder: Folder) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    groups = groups_of(loaded, ("i", "ii"))
    exact = plain(loaded, groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, ours = plain(loaded, groups), shared(loaded, groups)
    noise = apart(exact, rounded)
    assert 0 < apart(exact, ours)[0] < 2 * noise[0] and apart(exact, ours)[1] < 2 * noise[1]


def test_chunks_of_the_head_change_nothing(native_folder: Folder) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    groups = groups_of(loaded, ("i", "ii", ""))
    whole = shared(loaded, groups)
    values, gradient, _ = apart(whole, shared(loaded, groups, chunk=2))
    assert values <= 1e-6 and gradient <= 1e-5


def test_no_logits_of_a_prompt_are_made(native_folder: Folder) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    groups = groups_of(loaded, ("i", "ii"))
    scored: list[int] = []
    head = loaded.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, out: scored.append(out.numel() // out.shape[-1]))
    shared(loaded, groups)
    assert scored == [1, sum(int(row.sampled.sum()) for group in groups for row in group)]


# --- what it costs


@pytest.mark.parametrize("kind", ["assembled", "qwen2_5_vl", "qwen3_vl", "qwen2_audio"])
def test_an_encoder_sees_each_medium_once(kind: str, native_folder: Folder) -> None:
    """A group of four rows shows its prompt's media to the encoders once; row by row it is four times as much."""
    loaded = model_of(kind, native_folder)
    medium = "aa" if kind == "qwen2_audio" else "ii"
    group = rows_of(loaded, prompts_of(loaded, [medium])[0], RAGGED)
    names = [n for n, m in loaded.model.named_modules() if loaded.family.part_of(n) in ("vision", "audio")]
    encoder = loaded.model.get_submodule(min(names, key=len))
    seen: list[int] = []
    name = "input_features" if kind == "qwen2_audio" else "pixel_values"
    encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else next(iter(kwargs.values())))),
        with_kwargs=True,
    )
    shared(loaded, [group])
    plain(loaded, [group])
    once = len(group[0].media[name])
    assert seen == [once, 4 * once]


def test_linear_work_is_the_closed_form(native_folder: Folder) -> None:
    """Of the LLM's layers G (P + C) / (P + G C), here 3.7, of the head 1 (PERFORMANCE_RELIABILITY part A2)."""
    loaded = model_of("qwen2_5_vl", native_folder)
    group = rows_of(loaded, prompts_of(loaded, ["ii"])[0], [8] * 8)
    prompt = len(group[0]) - 8
    work: Counter[str] = Counter()

    def count(module: nn.Linear, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        work["layers"] += 2 * module.weight.numel() * (inputs[0].numel() // inputs[0].shape[-1])

    for module in loaded.model.get_decoder().modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        plain_work = _work(work, lambda: _forward(plain, loaded, group))
        shared_work = _work(work, lambda: _forward(shared, loaded, group))
    assert plain_work / shared_work == pytest.approx(8 * (prompt + 8) / (prompt + 8 * 8), rel=0.05)
    assert plain_work / shared_work > 2.5


def _forward(way: Callable[..., Any], loaded: Loaded, group: list[Rendered]) -> None:
    with pytest.raises(RuntimeError, match="does not require grad"):  # the loss without its gradient
        way(loaded, [group])


def _work(work: Counter[str], run: Callable[[], None]) -> int:
    work.clear()
    run()
    return work["layers"]


# --- rows with media behind their prompt


@pytest.mark.parametrize("kind", ["assembled", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("media", [("i", "i"), ("ii", "v"), ("v", "iv"), ("", "i")])
def test_media_behind_the_prompt(kind: str, media: tuple[str, str], native_folder: Folder) -> None:
    """Tool pictures: some rows get one in the middle of what they write, and go on writing."""
    loaded = model_of(kind, native_folder)
    first, tool = prompts_of(loaded, media)
    plain_rows = rows_of(loaded, first, [4, 6, 2])
    more = rows_of(loaded, tool, [5], seed=1)[0]
    rows = [plain_rows[0], behind(plain_rows[1], more), behind(plain_rows[2], more)]
    assert_equal(loaded, [rows, rows_of(loaded, tool, [3, 3], seed=2)])


@pytest.mark.parametrize("kind", ["qwen2_audio", "qwen2_5_omni_thinker"])
@pytest.mark.parametrize("media", [("a", "aa"), ("aa", "a"), ("", "a")])
def test_sound_behind_the_prompt(kind: str, media: tuple[str, str], native_folder: Folder) -> None:
    """Tool sounds, of other lengths than the prompt's."""
    test_media_behind_the_prompt(kind, media, native_folder)


@pytest.mark.parametrize("media", [("i", "a"), ("ai", "iv"), ("v", "va")])
def test_sound_and_pictures_behind_the_prompt(media: tuple[str, str], native_folder: Folder) -> None:
    test_media_behind_the_prompt("qwen2_5_omni_thinker", media, native_folder)


def behind(row: Rendered, more: Rendered) -> Rendered:
    """A row that goes on with another one's turns and media."""
    names = sorted({*row.media, *more.media})
    joined = {
        name: torch.cat([part.media[name] for part in (row, more) if name in part.media]) for name in names
    }
    parts: dict[str, Any] = {
        name: torch.cat([getattr(row, name), getattr(more, name)])
        for name in ("ids", "roles", "sampled", "token_types")
    }
    return replace(row, media=joined, **parts)


def test_media_that_cannot_be_told_apart_have_a_name(
    native_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that hears, but does not say how many tokens it makes of a sound."""
    loaded = model_of("qwen2_audio", native_folder)
    monkeypatch.delattr(
        type(loaded.model.get_submodule("model.audio_tower")), "_get_feat_extract_output_lengths"
    )
    first, tool = prompts_of(loaded, ("a", "a"))
    rows = rows_of(loaded, first, [4, 6])
    reason = beginning(loaded.model, loaded.family, [rows[0], behind(rows[1], rows_of(loaded, tool, [2])[0])])
    assert isinstance(reason, Unfit) and reason.name == "later_media"


def test_placeholders_that_are_not_the_media_s_own_have_a_name(native_folder: Folder) -> None:
    """As of models that place a video frame by frame under another token."""
    loaded = model_of("qwen2_5_vl", native_folder)
    first, tool = prompts_of(loaded, ("i", "i"))
    rows = [behind(row, rows_of(loaded, tool, [2])[0]) for row in rows_of(loaded, first, [4, 6])]
    assert not isinstance(beginning(loaded.model, loaded.family, rows), Unfit)
    ids = torch.where(rows[1].ids == loaded.family.placeholders["image"], 5, rows[1].ids)
    ids[: len(first)] = first.ids
    reason = beginning(loaded.model, loaded.family, [rows[0], replace(rows[1], ids=ids)])
    assert isinstance(reason, Unfit) and reason.name == "later_media"


def test_rows_that_begin_otherwise_have_a_name(native_folder: Folder) -> None:
    loaded = model_of("qwen2_5_vl", native_folder)
    first, other = (rows_of(loaded, prompt, [4, 6]) for prompt in prompts_of(loaded, ("i", "ii")))
    reason = beginning(loaded.model, loaded.family, [first[0], other[0]])
    assert isinstance(reason, Unfit) and reason.name == "beginnings"
    darker = replace(
        first[1], media={n: x * 0.5 if n == "pixel_values" else x for n, x in first[1].media.items()}
    )
    reason = beginning(loaded.model, loaded.family, [first[0], darker])
    assert isinstance(reason, Unfit) and reason.name == "media"
    copied = replace(first[1], media={n: x.clone() for n, x in first[1].media.items()})
    assert not isinstance(beginning(loaded.model, loaded.family, [first[0], copied]), Unfit)
    assert packed_of(loaded, [first]).ids.shape[1] == len(first[0]) + 6
