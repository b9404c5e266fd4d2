"""Models: load or assemble, take apart, adapt, feed, save."""

from __future__ import annotations

from mmreason.model.family import Family, bare, family_of, forward_inputs, media_inputs
from mmreason.model.load import Loaded, gradient_checkpointing, load_model
from mmreason.model.parts import add_lora, freeze, merge_lora, parameter_groups
from mmreason.model.save import copy_weights, probe_difference, read_weights, save_model, write_probe

__all__ = [
    "Family",
    "Loaded",
    "add_lora",
    "bare",
    "copy_weights",
    "family_of",
    "forward_inputs",
    "freeze",
    "gradient_checkpointing",
    "load_model",
    "media_inputs",
    "merge_lora",
    "parameter_groups",
    "probe_difference",
    "read_weights",
    "save_model",
    "write_probe",
]
