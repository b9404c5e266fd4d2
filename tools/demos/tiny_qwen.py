"""Make a tiny native Qwen2.5-VL with random weights, from its config alone: python tools/demos/tiny_qwen.py FOLDER.

It is what recipes/debug_vllm.yaml starts from. vLLM serves it, also on a CPU, whose attention wants heads of 32.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mmreason.bench.work import Shape, checkpoint
from mmreason.data.sources import load_rows
from mmreason.schema import SourceConfig

SHAPE = Shape(
    hidden=96,
    layers=3,
    heads=3,
    kv_heads=1,
    intermediate=192,
    vocabulary=512,
    vision_depth=2,
    vision_hidden=96,
    image_tokens=64,
)


def make(folder: Path) -> Path:
    """The model, its tokenizer trained on questions and answers of the image world; the same one every time."""
    with TemporaryDirectory() as scratch:
        rows = load_rows("words", SourceConfig(world="image", count=400, seed=9), Path(scratch))
    texts = [part.text for row in rows for message in row.messages for part in message.parts if part.text]
    texts += [text for row in rows for text in (*row.rationale.values(), row.solution or "")]
    return checkpoint(SHAPE, folder, texts)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/demos/tiny_qwen.py FOLDER")
    print(make(Path(sys.argv[1])))
