"""The probe: rendered inputs and the logits they gave, so that anybody can check a saved model exactly.

Both sides are computed by the same few lines, in a fresh process that has transformers and nothing of ours.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mmreason.model.family import Family
from mmreason.types import Rendered

# arguments: model folder, inputs file, outputs file
PLAIN = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

assert not any(name.startswith("mmreason") for name in sys.modules)
folder, inputs, outputs = sys.argv[1:4]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
named = "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
listed = type(config) in AutoModelForImageTextToText._model_mapping
auto = AutoModelForImageTextToText if named or listed else AutoModelForMultimodalLM
model = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
rows = {}
for name, tensor in load_file(inputs).items():
    row, _, argument = name.partition(".")
    if argument != "logits":
        rows.setdefault(row, {})[argument] = tensor
with torch.no_grad():
    logits = {f"{row}.logits": model(**arguments).logits.contiguous() for row, arguments in rows.items()}
save_file(logits, outputs)
"""


def plain_logits(folder: Path, inputs: Path) -> dict[str, torch.Tensor]:
    """`ROW.logits` of every row of `inputs`, float32 [1, T, V], by plain transformers in a process of its own.

    Raises:
        ValueError: the model folder does not load or run there; the message ends with what that process said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.safetensors"
        # -I: neither PYTHONPATH nor the working directory can bring mmreason in
        command = [sys.executable, "-I", "-c", PLAIN, str(folder.resolve()), str(inputs.resolve()), str(out)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{folder} does not run with plain transformers:\n{done.stderr[-2000:]}")
        return load_file(out)


def write_probe(folder: Path, family: Family, rows: Mapping[str, Rendered], path: Path | None = None) -> Path:
    """Write inputs and float32 logits of `rows` (modality -> one rendered row) as `probe.safetensors`.

    Args:
        folder: the saved model, see `save_model`.
        path: default: `probe.safetensors` beside `folder`.

    Returns:
        The file; its tensors are `image.input_ids`, `image.attention_mask`, `image.pixel_values`, `image.logits` ...
    """
    path = path or folder.parent / "probe.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, row in rows.items():
        inputs = {"input_ids": row.ids[None], "attention_mask": torch.ones_like(row.ids)[None], **row.media}
        if family.token_types:
            inputs["mm_token_type_ids"] = row.token_types[None]
        tensors |= {f"{name}.{argument}": tensor.contiguous() for argument, tensor in inputs.items()}
    beside = path.with_name(path.name + ".tmp")
    save_file(tensors, beside)
    tensors |= plain_logits(folder, beside)
    save_file(tensors, beside)
    beside.replace(path)
    return path


def probe_difference(folder: Path, path: Path | None = None) -> float:
    """Largest absolute difference between the logits stored in a probe and those of the folder now; 0.0 is exact."""
    path = path or folder.parent / "probe.safetensors"
    stored = {name: tensor for name, tensor in load_file(path).items() if name.endswith(".logits")}
    now = plain_logits(folder, path)
    return max(float((now[name] - tensor).abs().max()) for name, tensor in stored.items())
