"""How much memory a stage takes: its largest moments gone through on tensors that have shapes and no contents."""

from mmreason.memory.advice import Remedy, remedies
from mmreason.memory.estimate import Memory, Rows, estimate
from mmreason.memory.live import LiveBytes

__all__ = ["LiveBytes", "Memory", "Remedy", "Rows", "estimate", "remedies"]
