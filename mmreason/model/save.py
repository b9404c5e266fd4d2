"""Save a model and its processor as a folder that plain transformers loads, read it back, prove that it loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from mmreason.model.family import Family, bare
from mmreason.model.parts import merge_lora
from mmreason.model.quantize import is_quantized
from mmreason.types import Rendered

PROBE = "probe.safetensors"

# one class serves several Auto classes; register_for_auto_class writes only one of them
OWN_AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")


def save_model(model: nn.Module, processor: Any, folder: Path, *, merge: bool = True) -> Path:
    """Weights, config, generation config, processor and (for our own architectures) code, written beside and renamed.

    Args:
        folder: replaced as a whole when it exists.
        merge: a LoRA model is saved as the plain model with its adapters merged in; False: the adapters alone,
            which `load_model(..., checkpoint=folder)` puts on the recipe's model again.

    Returns:
        `folder`.
    """
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    plain = merge_lora(model) if merge or not isinstance(model, PeftModel) else model
    if not isinstance(plain, PeftModel) and plain.config.is_remote_code():
        _name_auto_classes(plain)
    options = {"save_embedding_layers": False} if isinstance(plain, PeftModel) else {}
    with quiet():
        plain.save_pretrained(beside, **options)
    processor.save_pretrained(beside)
    replace_folder(beside, folder)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what others draw while they load and save out of a run's own progress: bars, one for every checkpoint.

    Saving also makes accelerate import deepspeed, which warns on standard output that it finds no GPU, unless told.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _name_auto_classes(model: Any) -> None:
    """Let every Auto class that serves the model find its copied code."""
    reference = f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}"
    model.config.auto_map = dict.fromkeys(OWN_AUTO_CLASSES, reference)


def replace_folder(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; a crash leaves one of the two whole, and a leftover is removed next time."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Copy the weights (or, into a LoRA model, the adapters) that `save_model(..., merge=False)` wrote into `model`."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    plain = bare(model)
    with torch.random.fork_rng(devices=[]), quiet():
        # through from_pretrained, since transformers may rename weights between memory and disk
        stored = type(plain).from_pretrained(folder, dtype=plain.dtype, trust_remote_code=False)
    copy_weights(stored, plain)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy every weight and buffer of `source` into `target`, in place; the two have the same structure.

    Weights in 4 bits are the same in both and stay: adapters are copied alone.
    """
    if is_quantized(target):
        copy_adapters(source, target)
    else:
        target.load_state_dict(source.state_dict())


def copy_adapters(source: nn.Module, target: nn.Module) -> None:
    """Copy the adapters of one LoRA model into those of another, in place; what they stand on stays."""
    set_peft_model_state_dict(target, get_peft_model_state_dict(source, save_embedding_layers=False))


# arguments: model folder, inputs file, outputs file
PLAIN = """
import sys
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

assert not any(name.startswith("mmreason") for name in sys.modules)
folder, inputs, outputs = sys.argv[1:4]
with safe_open(inputs, "pt") as file:
    told = file.metadata() or {}
torch.set_num_threads(int(told.get("torch_threads", torch.get_num_threads())))
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
        # the model's code is copied to be imported: into the scratch folder, not into the user's cache
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{folder} does not run with plain transformers:\n{done.stderr[-2000:]}")
        return load_file(out)


def write_probe(model: nn.Module, family: Family, rows: Mapping[str, Rendered], folder: Path) -> Path:
    """Write `probe.safetensors` beside the saved model: inputs and float32 logits of `rows` (modality -> one row).

    Anybody can check a saved model with it exactly: the logits are computed by plain transformers in a process of its
    own that has nothing of ours, and compared with those of `model`, which guards against a save that lost something.

    Args:
        folder: where `save_model` put `model`.

    Returns:
        The file; its tensors are `image.input_ids`, `image.attention_mask`, `image.pixel_values`, `image.logits` ...
        and its metadata `torch_threads`: with another number of threads sums are rounded otherwise (1e-5).

    Raises:
        ValueError: the folder does not load, or its logits are not those of `model`.
    """
    path = folder.parent / PROBE
    tensors: dict[str, torch.Tensor] = {}
    for name, row in rows.items():
        inputs = {"input_ids": row.ids[None], "attention_mask": torch.ones_like(row.ids)[None], **row.media}
        if family.token_types:
            inputs["mm_token_type_ids"] = row.token_types[None]
        tensors |= {f"{name}.{argument}": tensor.clone() for argument, tensor in inputs.items()}
    beside = path.with_name(path.name + ".tmp")
    metadata = {"torch_threads": str(torch.get_num_threads())}
    save_file(tensors, beside, metadata)
    logits = plain_logits(folder, beside)
    for name in rows:
        inputs = {key.partition(".")[2]: t for key, t in tensors.items() if key.partition(".")[0] == name}
        _same(logits[f"{name}.logits"], _logits(model, inputs), folder)
    tensors |= logits
    save_file(tensors, beside, metadata)
    beside.replace(path)
    return path


@torch.no_grad()
def _logits(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    training = model.training
    device = next(model.parameters()).device
    logits = model.eval()(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
    model.train(training)
    return logits.float().cpu()


def _same(saved: torch.Tensor, live: torch.Tensor, folder: Path) -> None:
    # wide enough for bfloat16 and TF32; weights that were lost or not merged differ by far more
    worst, scale = float((saved - live).abs().max()), float(live.abs().max())
    if worst > 0.1 * scale:
        raise ValueError(
            f"{folder}: its logits differ from the trained model's by {worst:.3g} (largest {scale:.3g})"
        )


def probe_difference(folder: Path, path: Path | None = None) -> float:
    """Largest absolute difference between the logits stored in a probe and those of the folder now; 0.0 is exact."""
    path = path or folder.parent / PROBE
    stored = {name: tensor for name, tensor in load_file(path).items() if name.endswith(".logits")}
    now = plain_logits(folder, path)
    return max(float((now[name] - tensor).abs().max()) for name, tensor in stored.items())
