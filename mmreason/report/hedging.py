"""Questions with several right answers: named all, named only some (which a soft reward pays for), or got wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmreason.evaluate import EvalRow
from mmreason.report.load import Run
from mmreason.report.stages import stage_colours, stage_label


@dataclass(frozen=True)
class Share:
    """One stage's answers to such questions; what is neither exact nor hedged is wrong."""

    label: str
    colour: str
    exact: float
    hedged: float


@dataclass(frozen=True)
class Hedging:
    """One modality's questions with several right answers ("all": of every modality), stage by stage."""

    name: str
    n: int
    shares: list[Share]


def hedging(run: Run) -> list[Hedging]:
    """All such questions, then modality by modality where there are several; empty where no question is such."""
    several = {stage: [r for r in rows if r.hedge is not None] for stage, rows in run.rows.items()}
    names = sorted({row.modality for rows in several.values() for row in rows})
    out = []
    for name in ["all", *names] if len(names) > 1 else ["all"][: len(names)]:
        parts = {s: [r for r in rows if name in ("all", r.modality)] for s, rows in several.items()}
        shares = [_share(run, stage, rows) for stage, rows in parts.items() if rows]
        out.append(Hedging(name, max(len(rows) for rows in parts.values()), shares))
    return out


def _share(run: Run, stage: str, rows: Sequence[EvalRow]) -> Share:
    exact, hedged = (sum(getattr(r, key) or 0.0 for r in rows) / len(rows) for key in ("correct", "hedge"))
    return Share(stage_label(run, stage), stage_colours(run)[stage], exact, hedged)
