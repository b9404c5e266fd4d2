"""A folder of real PNG files and rows about them: one picture, two pictures, and none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "white")


def write_pictures(folder: Path, count: int = 6) -> Path:
    """`count` pictures of different shapes and colours and as many rows; returns rows.jsonl.

    Row 1 shows two pictures, row 2 none; every row has a solution, options and a free rationale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        Image.new("RGB", (56 + 8 * i, 64), COLOURS[i % 5]).save(folder / f"{i}.png")
        pictures = {1: ["1.png", "0.png"], 2: []}.get(i, [f"{i}.png"])
        rows.append(
            {
                "id": f"row-{i}",
                "problem": "<image>" * len(pictures) + "Which colour is this? " + "Look. " * i,
                "images": pictures,
                "solution": COLOURS[i % 5],
                "problem_type": "single_choice",
                "options": list(COLOURS),
                "rationale": {"free": "I see " + COLOURS[i % 5]},
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def break_picture(path: Path) -> None:
    """Cut a PNG in the middle of its data: its header still reads."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
