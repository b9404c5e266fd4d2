"""Curricula: a sampler over prompts and a gate over groups, each with its own state."""

from mmreason.curriculum.base import Gate, Sampler
from mmreason.curriculum.gates import gate_problem, make_gate
from mmreason.curriculum.samplers import SAMPLERS, make_sampler, peek

__all__ = ["SAMPLERS", "Gate", "Sampler", "gate_problem", "make_gate", "make_sampler", "peek"]
