"""Loading and assembling: native families, parts from checkpoints, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, SiglipImageProcessor

from mmreason.model import Loaded, forward_inputs, load_model
from mmreason.schema import ModelConfig
from mmreason.types import MicroBatch
from tests.tiny import AST, KINDS, QWEN3, SIGLIP, TEXTS, tiny_model_config, tiny_tokenizer


def load(folder: Path | str, **keys: Any) -> Loaded:
    return load_model(ModelConfig(model_name_or_path=str(folder), **keys), texts=list, seed=0)


def assemble(**keys: Any) -> Loaded:
    return load_model(tiny_model_config(**keys), texts=lambda: TEXTS, seed=0)


def question(loaded: Loaded, text: str, size: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if size is not None:
        content.insert(0, {"type": "image", "image": Image.linear_gradient("L").resize(size).convert("RGB")})
    messages = [{"role": "user", "content": content}]
    return loaded.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )


def micro_batch(loaded: Loaded, rows: list[dict[str, torch.Tensor]]) -> MicroBatch:
    length = max(row["input_ids"].shape[1] for row in rows)

    def padded(name: str) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(r[name], (0, length - r[name].shape[1])) for r in rows])

    names = {n for row in rows for n in row} - {"input_ids", "attention_mask", "mm_token_type_ids"}
    media = {n: torch.cat([row[n] for row in rows if n in row]) for n in names}
    zeros = torch.zeros(len(rows), length)
    return MicroBatch(
        ids=padded("input_ids"),
        attention_mask=padded("attention_mask"),
        token_types=padded("mm_token_type_ids"),
        media=media,
        aggregation=zeros,
        ce=zeros,
        rl=zeros,
        kl=zeros,
        old_logprobs=None,
        ref_logprobs=None,
        groups=torch.zeros(len(rows), dtype=torch.long),
        count=0.0,
    )


@pytest.mark.parametrize("kind", [*KINDS, "assembled"])
def test_mixed_batch_equals_rows_alone(
    kind: str, native_folder: Callable[[str], Path], assembled_folder: Path
) -> None:
    loaded = load(assembled_folder if kind == "assembled" else native_folder(kind))
    model = loaded.model.eval()
    rows = [
        question(loaded, "How many red squares are in the picture?", (64, 56)),
        question(loaded, "Two?", None),
        question(loaded, "left", (90, 120)),
    ]
    with torch.no_grad():
        batched = model(**forward_inputs(loaded.family, micro_batch(loaded, rows), "cpu")).logits
        for i, row in enumerate(rows):
            alone = model(**forward_inputs(loaded.family, micro_batch(loaded, [row]), "cpu")).logits[0]
            assert torch.allclose(batched[i, : alone.shape[0]], alone, atol=2e-5)
        text_only = model(**forward_inputs(loaded.family, micro_batch(loaded, rows[1:2]), "cpu")).logits
    assert torch.isfinite(text_only).all()


@pytest.mark.parametrize("kind", KINDS)
def test_native_family_is_read_from_the_config(kind: str, native_folder: Callable[[str], Path]) -> None:
    loaded = load(native_folder(kind))
    family = loaded.family
    assert family.name == "qwen_vl" and family.token_types
    assert family.placeholders == {"image": 3, "video": 4}
    assert {3, 4, 6, 7} <= set(family.placeholder_ids)
    parts = {family.part_of(name) for name, _ in loaded.model.named_parameters()}
    assert parts == {"vision", "projector", "llm"}
    assert family.part_of("model.visual.merger.mlp.0.weight") == "projector"
    assert family.part_of("model.visual.merger_of_another_kind.weight") == "vision"
    assert family.part_of("lm_head.weight") == "llm"


def test_unknown_media_are_refused_by_name(assembled_folder: Path) -> None:
    loaded = load(assembled_folder)
    row = {**question(loaded, "Two?", (64, 64)), "image_grid_thw": torch.ones(1, 3)}
    with pytest.raises(ValueError, match=r"media \['image_grid_thw'\] are unknown to a assembled model"):
        forward_inputs(loaded.family, micro_batch(loaded, [row]), "cpu")


def test_pixel_bounds_reach_the_processor(native_folder: Callable[[str], Path]) -> None:
    small = load(native_folder("qwen2_5_vl"), max_pixels=56 * 56)
    assert len(question(small, "a", (200, 200))["pixel_values"]) == 16  # 4 x 4 patches of 14
    assert len(question(load(native_folder("qwen2_5_vl")), "a", (200, 200))["pixel_values"]) == 196


def test_same_seed_same_weights_and_the_global_rng_is_left_alone() -> None:
    state = torch.get_rng_state()
    one, two = assemble().model, assemble().model
    assert torch.equal(state, torch.get_rng_state())
    other = load_model(tiny_model_config(), texts=lambda: TEXTS, seed=1).model
    weights = [m.state_dict() for m in (one, two, other)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(*(w["vision_projector.linear_in.weight"] for w in weights[::2]))


def test_parts_keep_their_pretrained_weights(tmp_path: Path) -> None:
    text = {k: v for k, v in SIGLIP.items() if k not in ("model_type", "patch_size")}
    siglip = AutoModel.from_config(
        AutoConfig.for_model(
            "siglip",
            vision_config={**SIGLIP, "image_size": 32},
            text_config={**text, "vocab_size": 64, "max_position_embeddings": 8},
        )
    )
    siglip.save_pretrained(tmp_path / "siglip")
    SiglipImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "siglip")
    tokenizer = tiny_tokenizer()
    config = {k: v for k, v in QWEN3.items() if k != "model_type"}
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), **config))
    llm.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    ast = AutoModel.from_config(
        AutoConfig.for_model(AST["model_type"], **{k: v for k, v in AST.items() if k != "model_type"})
    )
    made = assemble(
        vision={"pretrained": str(tmp_path / "siglip")}, llm={"pretrained": str(tmp_path / "llm")}
    )
    model = made.model
    tower = model.vision_tower.state_dict()
    assert all(torch.equal(t, siglip.vision_model.state_dict()[k]) for k, t in tower.items())
    assert not [name for name in tower if name.startswith("head.")]
    assert all(torch.equal(t, llm.state_dict()[k]) for k, t in model.language_model.state_dict().items())
    assert made.processor.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert list(made.processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert made.processor.image_processor.size == {"height": 32, "width": 32}
    ast.save_pretrained(tmp_path / "ast")
    with pytest.raises(ValueError, match="model.assemble.vision: .*ast lacks the weights"):
        shutil.copy(tmp_path / "ast" / "model.safetensors", tmp_path / "siglip" / "model.safetensors")
        (tmp_path / "siglip").rename(tmp_path / "ast_as_siglip_ast")
        assemble(vision={"pretrained": str(tmp_path / "ast_as_siglip_ast")})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vision": {"model_type": "siglop"}}, "model.assemble.vision has model_type 'siglop'"),
        ({"vision": None}, "neither vision nor audio"),
        (
            {
                "vision": {
                    "model_type": "swin",
                    "depths": [1, 1],
                    "num_heads": [2, 2],
                    "embed_dim": 8,
                    "window_size": 4,
                }
            },
            "a tower with one feature per square patch",
        ),
        (
            {"audio": [{"model_type": "wav2vec2"}]},
            "'wav2vec2'; allowed are .'whisper', 'audio-spectrogram-transformer'",
        ),
        ({"llm": {**QWEN3, "vocab_size": 12}}, "model.assemble.llm has vocab_size 12; the tokenizer needs"),
        ({"vision": {"pretrained": "x", "patch_size": 3}}, r"has \['patch_size'\] beside pretrained"),
    ],
)
def test_parts_that_do_not_fit_are_refused(keys: dict[str, Any], message: str, monkeypatch: Any) -> None:
    if "pretrained" in (keys.get("vision") or {}):
        monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_a, **_k: AutoConfig.for_model("vit"))
    with pytest.raises(ValueError, match=message):
        assemble(**keys)


def test_a_part_that_cannot_be_fetched_is_named() -> None:
    for part in ("vision", "llm"):
        with pytest.raises(ValueError, match=f"model.assemble.* 'no_such_{part}' is neither a folder"):
            assemble(**{part: {"pretrained": f"no_such_{part}"}})


def test_models_that_cannot_be_used_are_refused(tmp_path: Path, assembled_folder: Path) -> None:
    for name in (str(tmp_path / "absent"), "no_such_model"):
        with pytest.raises(
            ValueError, match=f"model_name_or_path '{name}' is neither a folder with a model nor"
        ):
            load(name)
    config = {k: v for k, v in QWEN3.items() if k != "model_type"}
    AutoConfig.for_model("qwen3", **config).save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="'qwen3' is no multimodal model to transformers"):
        load(tmp_path / "text")
    mute = shutil.copytree(assembled_folder, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="the processor has no chat template"):
        load(mute)
    with pytest.raises(ValueError, match="no such file; give a jinja file"):
        load(mute, chat_template=str(tmp_path / "none.jinja"))
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}!")
    loaded = load(mute, chat_template=str(tmp_path / "own.jinja"))
    assert loaded.processor.apply_chat_template([{"role": "user", "content": "Hi"}]) == "Hi!"
