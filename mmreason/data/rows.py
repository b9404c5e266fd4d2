"""One row of a file -> one Sample; what does not fit is named by row and column.

Two shapes of a row: `messages` with typed content parts, or text (`messages`, `problem`, `prompt` or `question`)
with `<image>`, `<video>`, `<audio>` markers beside lists `images`, `videos`, `audios`. A column `image`, `video` or
`audio` holds one medium; without a marker of its own it comes first, before the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmreason.data.conversation import CONVERSATION_COLUMNS, read_conversation
from mmreason.data.row_error import RowError, Where, tried
from mmreason.data.truth import TRUTH_COLUMNS, read_difficulty, read_evidence, read_rationale, read_truth
from mmreason.types import Sample

_READ = {"id", *CONVERSATION_COLUMNS, *TRUTH_COLUMNS}


def parse_row(row: Mapping[str, Any] | str, *, source: str, line: int, root: str) -> Sample:
    """One row -> Sample. A string is a line of JSON.

    Args:
        source: the recipe's name of the data; `Sample.source`.
        line: the row's number in its file, from 1.
        root: the folder that media paths are relative to and must stay inside.

    Raises:
        RowError: what does not fit, by the row's id (`source:line` where it has none of its own) and column.

    Example: `{"question": "<image>How many?", "images": ["3.png"], "solution": "2"}`.
    """
    where = Where(source, f"{source}:{line}", root)
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise where.error(f"no JSON ({error}); each line is one JSON object") from error
    if not isinstance(row, Mapping):
        raise where.error(f"got a {type(row).__name__}; each row is a JSON object")
    if row.get("id") not in (None, ""):
        where = replace(where, name=str(row["id"]))
    problems: list[str] = []
    conversation = tried(lambda: read_conversation(row, where), problems)
    truth = tried(lambda: read_truth(row, where), problems)
    rationale = tried(lambda: read_rationale(row.get("rationale"), where), problems)
    evidence = tried(lambda: read_evidence(row.get("evidence"), where), problems)
    difficulty = tried(lambda: (read_difficulty(row.get("difficulty"), where),), problems)
    if conversation is None or truth is None or rationale is None or evidence is None or difficulty is None:
        raise RowError(*problems)
    return Sample(
        id=where.name,
        source=source,
        messages=conversation[0],
        media=conversation[1],
        solution=truth.solution,
        problem_type=truth.problem_type,
        options=truth.options,
        rationale=rationale,
        evidence=evidence,
        difficulty=difficulty[0],
        columns={key: value for key, value in row.items() if key not in _READ},
    )
