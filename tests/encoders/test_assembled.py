"""The assembled model: where features go, which parts it takes, generation, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mmreason.model import Loaded, load_model, save_model
from mmreason.schema import ModelConfig
from tests.tiny import AST, QWEN3, SIGLIP, TEXTS, WHISPER, tiny_model_config

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}
LLAMA = {
    **{k: v for k, v in QWEN3.items() if k != "head_dim"},
    "model_type": "llama",
    "tie_word_embeddings": False,
}


def build(**assemble: Any) -> Loaded:
    loaded = load_model(tiny_model_config(**assemble), texts=lambda: TEXTS, seed=0)
    loaded.model.eval()
    return loaded


def ids_with(model: Any, *runs: int | tuple[str, int]) -> torch.Tensor:
    """[1, L]: a plain number is a text token, ("image", 16) a run of 16 image placeholders."""
    tokens: list[int] = []
    for run in runs:
        if isinstance(run, int):
            tokens.append(run)
        else:
            tokens += [getattr(model.config, f"{run[0]}_token_id")] * run[1]
    return torch.tensor([tokens])


def test_features_replace_placeholders_in_order_over_rows() -> None:
    model = build().model
    rows = torch.cat([ids_with(model, 50, ("image", 16), 51), ids_with(model, ("image", 16), 52, 53)])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.get_image_features(pixels)
        embeds = model.embed(rows, {"image": features})
        table = model.get_input_embeddings().weight
    assert features.shape == (2, 16, 32)
    assert torch.equal(embeds[0, 1:17], features[0]) and torch.equal(embeds[1, :16], features[1])
    assert torch.equal(embeds[0, 0], table[50]) and torch.equal(embeds[0, 17], table[51])
    assert torch.equal(embeds[1, 16:], table[[52, 53]])


@pytest.mark.parametrize(
    ("run", "pixels", "message"),
    [
        (15, 1, "15 image placeholder tokens in input_ids for 16 image features"),
        (16, 0, "16 image placeholder tokens in input_ids for 0 image features"),
        (0, 1, "0 image placeholder tokens in input_ids for 16 image features"),
        (16, 2, "16 image placeholder tokens in input_ids for 32 image features"),
    ],
)
def test_placeholders_and_features_must_agree(run: int, pixels: int, message: str) -> None:
    model = build().model
    values = torch.zeros(pixels, 3, 32, 32) if pixels else None
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids_with(model, 50, ("image", run), 51), pixel_values=values)


def test_a_batch_without_media_works_and_trains_the_llm_only() -> None:
    model = build().model
    model(input_ids=ids_with(model, 50, 51, 52), labels=torch.tensor([[50, 51, 52]])).loss.backward()
    assert model.vision_projector.linear_in.weight.grad is None
    assert model.get_input_embeddings().weight.grad is not None


@pytest.mark.parametrize(
    ("vision", "prefix"),
    [
        ({**TOWER, "model_type": "clip_vision_model"}, 1),
        ({**TOWER, "model_type": "dinov2"}, 1),
        ({**TOWER, "model_type": "dinov2_with_registers", "num_register_tokens": 4}, 5),
        ({**TOWER, "model_type": "vit"}, 1),
    ],
)
def test_any_vision_tower_gives_its_patches_without_class_and_register_tokens(
    vision: dict[str, Any], prefix: int
) -> None:
    model = build(vision=vision).model
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        hidden = model.vision_tower(pixels).last_hidden_state
        features = model.get_image_features(pixels)
    assert hidden.shape[1] == 16 + prefix
    assert torch.equal(features, model.vision_projector(hidden[:, prefix:]))


def test_llama_untied_trains_and_uses_the_picture() -> None:
    model = build(llm=LLAMA).model
    ids = ids_with(model, 50, ("image", 16), 51)
    with torch.no_grad():
        one, two = (model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32)).logits for _ in range(2))
    assert not torch.allclose(one[:, -1], two[:, -1]) and torch.equal(one[:, 0], two[:, 0])
    model(input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32), labels=ids).loss.backward()
    assert model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_two_audio_encoders_lie_one_after_the_other() -> None:
    model = build(audio=[WHISPER, AST]).model
    first, second = model.config.audio_tokens
    ids = ids_with(model, 50, ("audio", first + second), 51)
    x0, x1 = torch.randn(1, 16, 100), torch.randn(1, 98, 32)
    with torch.no_grad():
        base = model.embed(ids, model.encode(audio=[x0, x1]))
        other = model.embed(ids, model.encode(audio=[x0, x1 + torch.randn_like(x1)]))
    same = (base == other).all(dim=-1)[0]
    assert first == 50 and same[: 1 + first].all() and same[-1]
    assert not same[1 + first : 1 + first + second].any()
    with pytest.raises(ValueError, match="1 audio inputs for 2 audio encoders"):
        model(input_ids=ids, input_features_0=x0)


def test_video_frames_fill_video_placeholders() -> None:
    model = build().model
    frames = torch.randn(3, 3, 32, 32)
    ids = ids_with(model, 50, ("video", 48), ("image", 16), 51)
    with torch.no_grad():
        embeds = model.embed(ids, model.encode(frames[:1], frames))
        features = model.get_image_features(frames)
    assert torch.allclose(embeds[0, 1:49], features.flatten(0, 1), atol=1e-6)
    assert torch.allclose(embeds[0, 49:65], features[0], atol=1e-6)


def test_generate_equals_the_forward_without_cache_and_never_writes_placeholders() -> None:
    model = build().model
    ids, pixels = ids_with(model, 50, ("image", 16), 51), torch.randn(1, 3, 32, 32)
    made = model.generate(
        input_ids=ids, pixel_values=pixels, max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    rows = ids
    for _ in range(6):
        with torch.no_grad():
            logits = model(input_ids=rows, pixel_values=pixels, use_cache=False).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        rows = torch.cat([rows, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, rows)
    assert set(range(3, 10)) == set(model.generation_config.suppress_tokens)


def test_generate_repeats_rows_with_all_their_pictures() -> None:
    model = build().model
    pixels = torch.randn(3, 3, 32, 32)
    long = ids_with(model, 50, ("image", 16), 60, ("image", 16), 51)
    short = ids_with(model, 52, ("image", 16), 53)
    pad = torch.zeros(1, long.shape[1] - short.shape[1], dtype=torch.long)
    ids = torch.cat([long, torch.cat([pad, short], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, : pad.shape[1]] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    made = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=pixels, num_return_sequences=1, **options
    )
    grown, kwargs = model._expand_inputs_for_generation(
        expand_size=2, input_ids=ids, attention_mask=mask, pixel_values=pixels
    )
    assert torch.equal(kwargs["pixel_values"], pixels[[0, 1, 0, 1, 2, 2]])
    again = model.generate(input_ids=grown, **kwargs, **options)
    assert torch.equal(again, made[[0, 0, 1, 1]])
    alone = model.generate(input_ids=short, pixel_values=pixels[2:], **options)
    assert torch.equal(alone[:, short.shape[1] :], made[1:, ids.shape[1] :])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = build().model.train()
    ids, pixels = ids_with(model, 50, ("image", 16), 51), torch.randn(1, 3, 32, 32)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, pixel_values=pixels, labels=ids, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert len(layers) >= 2
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_installed_classes_load_with_remote_code_off_and_weights_stay_tied(assembled_folder: Path) -> None:
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        model = auto.from_pretrained(assembled_folder, trust_remote_code=False)
        assert type(model).__module__ == "mmreason_encoders.assembled.modeling_assembled"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_bfloat16_is_one_dtype_in_all_parts(tmp_path: Path) -> None:
    folder = save_model(*(lambda x: (x.model, x.processor))(build(audio=[WHISPER])), tmp_path / "m")
    config = ModelConfig(model_name_or_path=str(folder), torch_dtype="bfloat16", attn_implementation="eager")
    model = load_model(config, texts=list, seed=0).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    parts = (model.vision_tower, model.audio_towers[0], model.language_model)
    assert {part.config._attn_implementation for part in parts} == {"eager"}


def test_fresh_weights_honour_the_range() -> None:
    wide, narrow = (build(initializer_range=std, vision=SIGLIP, audio=[AST]).model for std in (0.08, 0.02))
    for name in (
        "vision_projector.linear_in",
        "language_model.model.layers.0.mlp.up_proj",
        "audio_projectors.0.linear_out",
    ):
        assert wide.get_submodule(name).weight.detach().std().item() == pytest.approx(0.08, rel=0.1)
        assert narrow.get_submodule(name).weight.detach().std().item() == pytest.approx(0.02, rel=0.1)
    assert wide.audio_towers[0].layers[0].mlp.fc1.weight.detach().std().item() == pytest.approx(0.08, rel=0.1)


def test_merged_patches_are_neighbours_in_reading_order() -> None:
    from mmreason_encoders.assembled.modeling_assembled import merge_patches

    patches = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid, numbered row by row
    assert merge_patches(patches, 2).tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    ]
    assert merge_patches(patches, 1) is patches


def test_a_merging_model_has_fewer_tokens_a_picture_and_refuses_a_side_that_does_not_divide() -> None:
    loaded = build(vision={**SIGLIP, "patch_size": 8}, spatial_merge=2)
    assert loaded.model.config.image_tokens == loaded.processor.image_tokens == 4  # of 4 x 4 patches
    features = loaded.model.get_image_features(torch.zeros(1, 3, 32, 32))
    assert features.shape[:2] == (1, 4)
    with pytest.raises(ValueError, match=r"spatial_merge is 3; the tower has 4 x 4 patches, .*\[1, 2, 4\]"):
        build(vision={**SIGLIP, "patch_size": 8}, spatial_merge=3)


# --- sound, films and their moments

HEARING = {"audio": [{**WHISPER, "audio_merge": 10}, {**AST, "audio_merge": 2}]}


def test_moments_of_sound_merge_in_time_order() -> None:
    from mmreason_encoders.assembled.features_assembled import merge_moments

    whisper, ast = (tower.config for tower in build(**HEARING).model.audio_towers)
    states = torch.arange(6.0).view(1, 6, 1)
    assert merge_moments(states, whisper, 2).tolist() == [[[0, 1], [2, 3], [4, 5]]]
    # AST: class and distillation token, then for each of two bands its moments (32 bins, patches of 16: 2 bands)
    bands = torch.tensor([-1.0, -2, 10, 11, 12, 13, 20, 21, 22, 23]).view(1, 10, 1)
    assert merge_moments(bands, ast, 1).tolist() == [[[10, 20], [11, 21], [12, 22], [13, 23]]]
    assert merge_moments(bands, ast, 2).tolist() == [[[10, 20, 11, 21], [12, 22, 13, 23]]]


def test_ast_moments_hear_their_own_time() -> None:
    model = build(audio=[AST]).model
    tower = model.audio_towers[0]
    with torch.no_grad():  # no attention: a patch sees itself alone
        for layer in tower.layers:
            layer.attention.o_proj.weight.zero_()
            layer.attention.o_proj.bias.zero_()
        quiet = torch.zeros(1, 98, 32)
        loud = quiet.clone()
        loud[:, 48:64] = 3.0  # the fourth moment: frames 48 to 63
        changed = (model.get_audio_features([quiet]) - model.get_audio_features([loud])).abs().amax(-1)
    assert (changed[0] > 1e-4).tolist() == [i == 3 for i in range(6)]


def test_tokens_per_clip_follow_audio_merge() -> None:
    loaded = build(**HEARING)
    config = loaded.model.config
    assert config.audio_tokens == [5, 3] and config.audio_merge == [10, 2]
    assert [spec["tokens"] for spec in loaded.processor.audio_encoders] == [5, 3]
    assert config.audio_moments[:5] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert config.audio_moments[5:] == pytest.approx([0.995 * (i + 0.5) / 3 for i in range(3)])
    features = loaded.model.get_audio_features([torch.zeros(2, 16, 100), torch.zeros(2, 98, 32)])
    assert features.shape == (2, 8, 32)
    with pytest.raises(
        ValueError, match=r"audio_merge is 4; this whisper makes 50 moments of 1 s, .*\[1, 2, 5, 10"
    ):
        build(audio=[{**WHISPER, "audio_merge": 4}])
    with pytest.raises(ValueError, match="audio_merge 0; a whole number"):
        build(audio=[{**WHISPER, "audio_merge": 0}])


def test_the_order_of_a_clip_decides_where_its_features_go() -> None:
    model = build(**HEARING).model
    ids = ids_with(model, 50, ("audio", 16), 51)
    clips = [torch.randn(2, 16, 100), torch.randn(2, 98, 32)]
    order = torch.stack([torch.arange(8), torch.tensor([0, 5, 1, 6, 2, 3, 7, 4])])
    with torch.no_grad():
        features = model.encode(audio=clips)
        placed = model.embed(ids, model.place(features, audio_order=order))[0, 1:17]
    assert torch.equal(placed[:8], features["audio"][0])
    assert torch.equal(placed[8:], features["audio"][1][order[1]])


def test_the_signal_of_time_is_nothing_at_first_and_then_tells_moments_apart() -> None:
    model = build(**HEARING).model
    frames, times = torch.randn(1, 3, 32, 32).expand(3, -1, -1, -1), torch.tensor([0.0, 0.5, 2.0])
    ids = ids_with(model, 50, ("video", 48), ("audio", 8), 51)
    sound = {"input_features_0": torch.randn(1, 16, 100), "input_features_1": torch.randn(1, 98, 32)}
    plain = model(input_ids=ids, pixel_values_videos=frames, **sound)
    timed = model(input_ids=ids, pixel_values_videos=frames, video_times=times, labels=ids, **sound)
    assert torch.equal(plain.logits, timed.logits)
    timed.loss.backward()
    assert model.time_embedding.weight.grad.abs().sum() > 0
    with torch.no_grad():
        model.time_embedding.weight.normal_()
        features = model.encode(pixel_values_videos=frames)
        placed = model.place(features, video_times=times)["video"]
    shifts = (placed - features["video"])[:, 0]
    phases = 2 * torch.pi * times[:, None] / torch.tensor([0.5 * 2**k for k in range(8)])  # 0.5 to 64 seconds
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    assert torch.allclose(shifts, waves @ model.time_embedding.weight.T, atol=1e-5)
    assert build(time_embedding=False).model.time_embedding is None


def test_frames_merge_two_by_two() -> None:
    loaded = build(temporal_merge=2)
    model = loaded.model
    frames = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        features = model.get_video_features(frames)
        hidden = model.vision_tower(frames[2:]).last_hidden_state
        wanted = model.video_projector(torch.cat([hidden[0], hidden[1]], dim=-1))
    assert features.shape == (2, 16, 32)
    assert torch.allclose(features[1], wanted, atol=1e-6)
    ids = ids_with(model, 50, ("video", 32), 51)
    assert (
        model(input_ids=ids, pixel_values_videos=frames, video_times=torch.arange(4.0)).logits.shape[1] == 34
    )
    _, grown = model._expand_inputs_for_generation(
        expand_size=2, input_ids=ids, pixel_values_videos=frames, video_times=torch.arange(4.0)
    )
    assert grown["video_times"].tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(grown["pixel_values_videos"], torch.cat([frames, frames]))


def test_features_of_a_frame_know_the_frame_before_and_never_another_video() -> None:
    model = build(temporal_context=1).model
    films, times = (
        torch.randn(5, 3, 32, 32),
        torch.tensor([0.0, 0.5, 1.0, 0.0, 0.5]),
    )  # three frames, then two
    with torch.no_grad():
        features = model.get_video_features(films, times)
        hidden = model.vision_tower(films).last_hidden_state
        before = hidden[[0, 0, 1, 3, 3]]  # before a first frame stands the first itself
        wanted = model.video_projector(torch.cat([before, hidden], dim=-1))
        alone = model.get_video_features(films[3:], times[3:])
    assert features.shape == (5, 16, 32)
    assert torch.allclose(features, wanted, atol=1e-6)
    assert torch.allclose(features[3:], alone, atol=1e-6)
    mutant = model.video_projector(
        torch.cat([hidden[[0, 0, 1, 2, 3]], hidden], dim=-1)
    )  # runs on over the videos
    assert not torch.allclose(mutant[3], wanted[3], atol=1e-3)
    with pytest.raises(ValueError, match="temporal_context 1 needs to know where each video begins"):
        model.get_video_features(films)


def test_context_comes_after_merging() -> None:
    model = build(temporal_merge=2, temporal_context=1).model
    films, times = torch.randn(6, 3, 32, 32), torch.tensor([0.0, 0.5, 1.0, 1.5, 0.0, 0.5])
    with torch.no_grad():
        features = model.get_video_features(films, times)
        pairs = model.vision_tower(films).last_hidden_state.view(3, 2, 16, -1).transpose(1, 2).flatten(2)
        wanted = model.video_projector(torch.cat([pairs[[0, 0, 2]], pairs], dim=-1))
    assert torch.allclose(features, wanted, atol=1e-6)
