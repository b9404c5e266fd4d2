"""One judged answer: the question, what the model wrote, what the verifier says. Kept as JSON lines."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from mmreason.data.worlds import group_of
from mmreason.rewards import hedge, soft_score, strict_format, think_body, verify
from mmreason.types import Group, Rendered, Sample, Trajectory


@dataclass(frozen=True)
class EvalRow:
    """One held-out question with the greedy answer of one stage.

    Example: `EvalRow(id="test:0", source="test", modality="image", problem_type="numeric", kind="count",
    difficulty=0.2, question="How many?", options=(), solution="2",
    completion="<think>..</think><answer>2</answer>", correct=1.0, soft=1.0, think=True, format=1.0,
    hedge=None, length=31)`.
    """

    id: str
    source: str
    modality: str
    problem_type: str
    kind: str  # the world's name for the question's form; the problem_type where a row names none
    difficulty: float | None
    question: str
    options: tuple[str, ...]
    solution: str | None
    completion: str
    correct: float | None  # exact, 0 or 1; None: the row has no solution to verify against
    soft: float | None  # subset score, 0..1
    think: bool
    format: float  # 1 in the strict format, else 0
    hedge: bool | None  # None: the question has one answer
    length: int  # tokens of the completion
    media: tuple[Mapping[str, Any], ...] = ()  # {"kind", "path", "root"} each
    evidence: tuple[Mapping[str, Any], ...] = ()
    origin: str = ""  # the row's own `source` column; "" where it has none
    group: str = (
        ""  # the row's own `group` column, or the world's group of kinds: "primitive", "compositional"
    )


def judge(sample: Sample, completion: str, length: int) -> EvalRow:
    """Verify one completion of `length` tokens and keep all that a reader needs to see why."""
    columns = sample.columns
    kind, origin = str(columns.get("kind") or sample.problem_type), str(columns.get("source") or "")
    return EvalRow(
        id=sample.id,
        source=sample.source,
        modality=sample.modality,
        problem_type=sample.problem_type,
        kind=kind,
        difficulty=sample.difficulty,
        question=question_text(sample),
        options=sample.options,
        solution=sample.solution,
        completion=completion,
        correct=verify(sample, completion),
        soft=soft_score(sample, completion),
        think=thinks(completion),
        format=float(strict_format(completion)),
        hedge=hedge(sample, completion),
        length=length,
        media=tuple(media_json(sample)),
        evidence=sample.evidence,
        origin=origin,
        group=str(columns.get("group") or group_of(origin, kind)),
    )


def thinks(completion: str) -> bool:
    """Whether the think body is not empty after stripping."""
    return bool((think_body(completion) or "").strip())


def question_text(sample: Sample) -> str:
    """The user's words, without system turn and media."""
    texts = [p.text for m in sample.messages if m.role == "user" for p in m.parts if p.type == "text"]
    return "\n".join(t.strip() for t in texts if t.strip())


def media_json(sample: Sample) -> list[dict[str, str]]:
    """The sample's media as `{kind, path, root}`; a medium held as bytes by its row has an empty path."""
    return [{"kind": m.kind, "path": m.path, "root": str(m.root)} for m in sample.media]


def bare_group(sample: Sample, completions: Sequence[str], lengths: Sequence[int] | None = None) -> Group:
    """Completions as a group that no model rendered, for rewards that read texts (and lengths)."""
    empty = torch.zeros(0, dtype=torch.int64)
    prompt = Rendered(sample.id, empty, empty.to(torch.int8), empty.bool(), empty)
    sizes = lengths or [0] * len(completions)
    trajectories = tuple(
        Trajectory(torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool), text, "stop")
        for text, size in zip(completions, sizes, strict=True)
    )
    return Group(sample, prompt, trajectories)


def write_rows(path: Path, rows: Iterable[EvalRow]) -> None:
    """Write JSON lines beside and rename into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(
        "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    os.replace(beside, path)


def read_rows(path: Path) -> list[EvalRow]:
    """The inverse of `write_rows`. Keys that this version does not know are ignored."""
    known = {f.name for f in fields(EvalRow)}
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):  # not splitlines: a completion may hold U+2028
        if line:
            stored = {k: v for k, v in json.loads(line).items() if k in known}
            for name in ("options", "media", "evidence"):
                stored[name] = tuple(stored.get(name) or ())
            rows.append(EvalRow(**stored))
    return rows


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are known and finite; None when there is none."""
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else None
