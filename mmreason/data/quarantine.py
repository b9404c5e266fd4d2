"""Rows that could not be read: named in `quarantine.jsonl`, counted by source, and bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Quarantine:
    """Appends each unreadable row once, and stops the run when a source has lost too many.

    Example: `Quarantine(run_dir / "quarantine.jsonl", totals={"rows": 100}, max_fraction=0.1)` stops at the 11th row.
    """

    def __init__(
        self, path: Path, *, totals: Mapping[str, int] | None = None, max_fraction: float = 1.0
    ) -> None:
        self.path = path
        self.totals = dict(totals or {})
        self.max_fraction = max_fraction
        self._rows: dict[str, dict[str, str]] = {}  # source -> row id -> reason
        self._written = self._read()

    def add(self, sample_id: str, medium: str, reason: str, *, source: str = "") -> None:
        """Name a row that could not be read; a row that is there already is not counted again."""
        rows = self._rows.setdefault(source, {})
        if sample_id in rows:
            return
        rows[sample_id] = reason
        if (source, sample_id) in self._written:  # by the run that this one goes on from
            return
        self._written.add((source, sample_id))
        line = {
            "source": source,
            "id": sample_id,
            "medium": medium,
            "reason": reason,
            "time": round(time.time(), 1),
        }
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
