"""Rows that could not be read: named in `quarantine.jsonl`, counted by source, and bounded.

Every process of a run keeps all of them: each adds the rows it met, `share` brings them together, and only one
process writes the file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Quarantine:
    """Appends each unreadable row once, and stops the run when a source has lost too many.

    Example: `Quarantine(run_dir / "quarantine.jsonl", totals={"rows": 100}, max_fraction=0.1)` stops at the 11th row.
    """

    def __init__(
        self,
        path: Path,
        *,
        totals: Mapping[str, int] | None = None,
        max_fraction: float = 1.0,
        writes: bool = True,
    ) -> None:
        self.path = path
        self.writes = writes  # false in all processes but one
        self.totals = dict(totals or {})
        self.max_fraction = max_fraction
        self._rows: dict[str, dict[str, str]] = {}  # source -> row id -> reason
        self._fresh: list[dict[str, Any]] = []  # lines of the rows that the other processes do not know yet
        self._written = self._read() if writes else set()

    def add(self, sample_id: str, medium: str, reason: str, *, source: str = "") -> None:
        """Name a row that could not be read; a row that is there already is not counted again."""
        if sample_id in self._rows.get(source, {}):
            return
        line = {
            "source": source,
            "id": sample_id,
            "medium": medium,
            "reason": reason,
            "time": round(time.time(), 1),
        }
        self._fresh.append(line)
        self._take(line)

    def share(self, gather: Callable[[Any], list[Any]]) -> None:
        """Count the rows that any process has added since the last call; every process calls this at the same place.

        `gather` returns the given value of every process, in the order of their ranks.
        """
        for lines in gather(self._fresh):
            for line in lines:
                self._take(line)
        self._fresh = []

    def _take(self, line: dict[str, Any]) -> None:
        """Count the row of a line, and write it unless the file names it already (a run that goes on)."""
        source, sample_id = line["source"], line["id"]
        self._rows.setdefault(source, {}).setdefault(sample_id, line["reason"])
        if not self.writes or (source, sample_id) in self._written:
            return
        self._written.add((source, sample_id))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def counts(self) -> dict[str, int]:
        """Quarantined rows by source."""
        return {source: len(rows) for source, rows in self._rows.items()}

    def check(self) -> None:
        """Raises ValueError when some source has lost more than `max_fraction` of its rows."""
        for source, count in self.counts().items():
            total = self.totals.get(source, 0)
            if total and count > self.max_fraction * total:
                first_id, reason = next(iter(self._rows[source].items()))
                raise ValueError(
                    f"data.{source}: {count} of {total} rows could not be read; allowed is a share of "
                    f"{self.max_fraction} (max_bad_fraction). The first was "
                    f"{first_id}: {reason}. All are in {self.path.name}: repair or remove them, or raise "
                    "max_bad_fraction"
                )

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: every counted row with its reason."""
        return {"rows": {source: dict(rows) for source, rows in self._rows.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; what `quarantine.jsonl` says already is not written twice."""
        self._rows = {source: dict(rows) for source, rows in state["rows"].items()}

    def _read(self) -> set[tuple[str, str]]:
        """Rows that the file names; a last line torn by a kill is cut off."""
        if not self.path.is_file():
            return set()
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        lines = [json.loads(line) for line in whole.splitlines()]
        return {(line["source"], line["id"]) for line in lines}
