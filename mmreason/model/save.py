"""Save a model and its processor as a folder that plain transformers loads."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from mmreason.model.parts import merge_lora

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
    plain.save_pretrained(beside)
    processor.save_pretrained(beside)
    replace_folder(beside, folder)
    return folder


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
