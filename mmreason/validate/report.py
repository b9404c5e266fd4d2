"""What validation found: as JSON, and as tables for the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group as Lines
from rich.table import Table

from mmreason.memory import Memory

NAMED_PROBLEMS = 20  # of one kind in one source; the rest is counted


@dataclass
class Report:
    """What validation found. Sound when `problems` is empty.

    Example: `Report("recipes/debug.yaml").as_dict()["ok"]` is True.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was not checked, and why
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows, media, prompt and target tokens
    rewards: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # stage -> reward -> mean on gold answers
    memory: dict[str, Memory] = field(default_factory=dict)  # stage -> prediction

    def add(self, problems: Sequence[str]) -> None:
        """Take up problems of one kind: the first NAMED_PROBLEMS by name, the rest as a number."""
        self.problems += problems[:NAMED_PROBLEMS]
        if len(problems) > NAMED_PROBLEMS:
            self.problems.append(f"... and {len(problems) - NAMED_PROBLEMS} more like the last one")

    def attempt(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None with its complaint taken up."""
        try:
            return work()
        except (ValueError, OSError) as error:  # what a user's mistake raises, here and in transformers
            self.add([str(error)])
            return None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        memory = {name: m.as_dict() for name, m in self.memory.items()}
        parts = {"sources": self.sources, "rewards_on_gold": self.rewards, "memory_estimate": memory}
        return {
            "recipe": self.name,
            "ok": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            **parts,
        }

    def table(self) -> Lines:
        """The report as rich tables, problems last."""
        lines: list[Any] = []
        if self.sources:
            rows = Table("source", "rows", "media", "prompt tokens", "target tokens", title="data")
            for name, s in self.sources.items():
                rows.add_row(name, str(s["rows"]), str(s["media"]), _range(s["prompt"]), _range(s["target"]))
            lines.append(rows)
        if self.rewards:
            marks = Table("stage", "reward", "on the gold answers", title="rewards")
            for stage, means in self.rewards.items():
                for name, value in means.items():
                    marks.add_row(stage, name, "does not apply" if value is None else f"{value:.3f}")
            lines.append(marks)
        if self.memory:
            parts = Table(
                "stage",
                *Memory.PARTS,
                "most at once",
                title="predicted memory of one process in MB, without Python and libraries (0.6 GB)",
            )
            for stage, m in self.memory.items():
                parts.add_row(stage, *(f"{v / 1e6:,.0f}" for v in [*m.parts(), m.total]))
            lines.append(parts)
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        count = len(self.problems)
        lines.append(
            f"{self.name}: " + ("ready to train" if not count else f"{count} problem{'s' * (count != 1)}")
        )
        return Lines(*lines)


def _range(spans: Mapping[str, float] | None) -> str:
    return "-" if spans is None else f"{spans['min']} to {spans['max']} ({spans['rows']} rows rendered)"
