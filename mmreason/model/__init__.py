"""Models: load or assemble, take apart, adapt, feed, save."""

from __future__ import annotations

from mmreason.model.family import Family, bare, family_of, forward_inputs
from mmreason.model.load import Loaded, load_model
from mmreason.model.parts import add_lora, freeze, merge_lora, parameter_groups
from mmreason.model.probe import probe_difference, write_probe
from mmreason.model.save import save_model

__all__ = [
    "Family",
    "Loaded",
    "add_lora",
    "bare",
    "family_of",
    "forward_inputs",
    "freeze",
    "load_model",
    "merge_lora",
    "parameter_groups",
    "probe_difference",
    "save_model",
    "write_probe",
]
