"""Group gates: which rollouts are worth a gradient. The trainer refills what is dropped and caps the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmreason.curriculum.base import Gate
from mmreason.schema import GateConfig
from mmreason.types import Group

_COUNTS = ("admitted", "dropped_easy", "dropped_hard", "unverified")


class OpenGate:
    """Admits every group."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_COUNTS, 0)

    def judge(self, group: Group) -> str:
        """The count that this group belongs to."""
        return "admitted"

    def admit(self, group: Group) -> bool:
        return not self.judge(group).startswith("dropped")

    def observe(self, groups: Sequence[Group]) -> None:
        """Count what became of every rank's groups; the thresholds are fixed, results do not move them."""
        for group in groups:
            self.counts[self.judge(group)] += 1

    def metrics(self) -> dict[str, float]:
        dropped = self.counts["dropped_easy"] + self.counts["dropped_hard"]
        total = sum(self.counts.values())
        return {
            **{f"curriculum/{name}": float(count) for name, count in self.counts.items()},
            "curriculum/dropped": float(dropped),
            "curriculum/admit_rate": (total - dropped) / total if total else 1.0,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = dict(state["counts"])


class BalancedGate(OpenGate):
    """Balanced online difficulty filtering (arXiv 2504.03380): group accuracy in [low, high], both included.

    `dropped_easy` lie above the band, `dropped_hard` below. A group that no verifier could judge passes,
    counted as `unverified`: there is no evidence against it.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if low > high:
            raise ValueError(f"gate.low {low} is above gate.high {high}; exchange them")
        self.low, self.high = low, high

    def judge(self, group: Group) -> str:
        accuracy = group.accuracy
        if accuracy is None:
            return "unverified"
        if accuracy > self.high + 1e-9:
            return "dropped_easy"
        return "admitted" if accuracy >= self.low - 1e-9 else "dropped_hard"


def make_gate(cfg: GateConfig) -> Gate:
    """The recipe's gate."""
    return OpenGate() if cfg.name == "none" else BalancedGate(cfg.low, cfg.high)


def gate_problem(cfg: GateConfig, num_generations: int) -> str | None:
    """Why this band can admit no group of this size, in words; None when it can."""
    if cfg.name == "none":
        return None
    reachable = [k / num_generations for k in range(num_generations + 1)]
    if any(cfg.low - 1e-9 <= accuracy <= cfg.high + 1e-9 for accuracy in reachable):
        return None
    return (
        f"gate [{cfg.low}, {cfg.high}] holds none of the accuracies of {num_generations} generations, "
        f"{[round(a, 3) for a in reachable]}; widen it or raise num_generations"
    )
