"""Saving: whole folders, exact reloads, and the proof by plain transformers in a process without mmreason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmreason.model import load_model, probe_difference, read_weights, save_model, write_probe
from mmreason.schema import ModelConfig
from mmreason.types import Rendered
from tests.tiny import AST, KINDS, TEXTS, WHISPER, tiny_model_config


def rendered(processor: Any, content: list[dict[str, Any]]) -> Rendered:
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids, types = batch.pop("input_ids")[0], batch.pop("mm_token_type_ids")[0]
    batch.pop("attention_mask")
    zeros = torch.zeros_like(ids)
    return Rendered("probe", ids, zeros.to(torch.int8), zeros.bool(), types, dict(batch))


def picture() -> dict[str, Any]:
    return {"type": "image", "image": Image.linear_gradient("L").resize((60, 44)).convert("RGB")}


def test_plain_transformers_reproduces_the_assembled_model_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_model_config(audio=[WHISPER, AST]), texts=lambda: TEXTS, seed=0)
    folder = save_model(loaded.model, loaded.processor, tmp_path / "model")
    clip = {"type": "audio", "audio": np.sin(np.arange(8000) / 7).astype(np.float32)}
    film = {"type": "video", "video": np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)}
    rows = {
        "image": rendered(loaded.processor, [picture(), {"type": "text", "text": "How many?"}]),
        "av": rendered(loaded.processor, [film, clip, {"type": "text", "text": "What is heard?"}]),
        "text": rendered(loaded.processor, [{"type": "text", "text": "Two?"}]),
    }
    path = write_probe(loaded.model, loaded.family, rows, folder)
    assert path == tmp_path / "probe.safetensors"
    tensors = load_file(path)
    assert {"image.pixel_values", "av.pixel_values_videos", "av.input_features_1", "text.logits"} <= set(
        tensors
    )
    loaded.model.eval()
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads() % 2 + 1))  # not the probe's
    assert probe_difference(folder) == 0.0
    with torch.no_grad():
        for name, row in rows.items():
            here = loaded.model(input_ids=row.ids[None], **row.media).logits
            assert torch.equal(here, tensors[f"{name}.logits"])
    weights = load_file(folder / "model.safetensors")
    weights["vision_projector.linear_in.bias"] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert probe_difference(folder) > 1e-4


def test_a_save_that_lost_the_training_is_noticed(
    tmp_path: Path, native_folder: Callable[[str], Path]
) -> None:
    folder = shutil.copytree(native_folder("qwen2_5_vl"), tmp_path / "model")
    loaded = load_model(ModelConfig(model_name_or_path=str(folder)), texts=list, seed=0)
    rows = {"image": rendered(loaded.processor, [picture()])}
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(-1)
    with pytest.raises(ValueError, match="its logits differ from the trained model's"):
        write_probe(loaded.model, loaded.family, rows, folder)


@pytest.mark.parametrize("kind", [*KINDS, "assembled"])
def test_weights_come_back_exactly(
    kind: str, tmp_path: Path, native_folder: Callable[[str], Path], assembled_folder: Path
) -> None:
    start = assembled_folder if kind == "assembled" else native_folder(kind)
    loaded = load_model(ModelConfig(model_name_or_path=str(start)), texts=list, seed=0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    folder = save_model(loaded.model, loaded.processor, tmp_path / "stage", merge=False)
    kept = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    storage = next(loaded.model.parameters()).data_ptr()
    read_weights(loaded.model, start)
    assert not all(torch.equal(tensor, kept[name]) for name, tensor in loaded.model.state_dict().items())
    state = torch.get_rng_state()
    read_weights(loaded.model, folder)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in loaded.model.state_dict().items())
    assert next(loaded.model.parameters()).data_ptr() == storage and torch.equal(state, torch.get_rng_state())
    again = load_model(ModelConfig(model_name_or_path=str(start)), texts=list, seed=0, checkpoint=folder)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.model.state_dict().items())


def test_a_folder_is_replaced_as_a_whole(assembled_folder: Path, tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=list, seed=0)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "left_over.bin").write_bytes(b"x")
    (tmp_path / "model.tmp").mkdir()  # a save that was killed
    (tmp_path / "model.tmp" / "half.safetensors").write_bytes(b"x")
    save_model(loaded.model, loaded.processor, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert {p.name for p in folder.iterdir()} == {p.name for p in assembled_folder.iterdir()}
