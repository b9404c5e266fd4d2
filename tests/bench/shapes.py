"""The shape that the benchmarks' own tests measure: small enough for seconds."""

from __future__ import annotations

from mmreason.bench import Shape

SMALL = Shape(
    hidden=48,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate=96,
    vision_depth=2,
    vision_hidden=32,
    image_tokens=64,
    new_tokens=12,
    group=4,
)
