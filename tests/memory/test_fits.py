"""The table of fits: published shapes without weights; the parts that several GPUs share, and the line of prompts."""

from __future__ import annotations

import pytest

from mmreason.memory import fits as table
from mmreason.memory.fits import Fit, film, longest, without_weights


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(table.SHAPES, "small", (256, 2, 2, 1, 512, 151936, False))
    return "small"


@pytest.mark.slow
def test_a_shape_is_predicted_without_its_weights(small: str) -> None:
    found = {(fit.way, fit.gpus): fit for fit in table.fits([small], [2], [4], [1, 4])}
    assert len(found) == 2 * 3 + 1  # LoRA is told once
    whole, quarter = (found["whole LLM, zero3", n].gpu_bytes for n in (1, 4))
    loaded = without_weights(small)
    weights = sum(p.numel() for p in loaded.model.parameters())
    parts = loaded.model.named_parameters()
    vision = sum(p.numel() for name, p in parts if loaded.family.part_of(name) == "vision")  # it is frozen
    # of bfloat16 weights 2 bytes, of those that learn gradients 2 and float32 weights and moments 12, shared
    saved = (2 * weights + 14 * (weights - vision)) * 3 // 4
    assert whole - quarter == pytest.approx(saved, rel=0.01)
    assert found["LoRA", 1].cpu_bytes == 0
    offloaded, beside = (found[f"whole LLM, {way}", 4] for way in ("zero2_offload", "zero2"))
    assert offloaded.cpu_bytes == pytest.approx(12 * (weights - vision) / 4, rel=0.01)
    assert beside.gpu_bytes - offloaded.gpu_bytes == pytest.approx(offloaded.cpu_bytes, rel=0.01)


def test_the_line_is_hand_computed() -> None:
    short, long = (
        Fit("m", "LoRA", 2, tokens, 8, 1, size, "training", 0) for tokens, size in ((2000, 20), (12000, 21))
    )
    assert longest(short, long, 80) == 602_000


def test_an_unknown_shape_and_odd_frames_are_named(small: str) -> None:
    with pytest.raises(ValueError, match="no shape 'Qwen9'"):
        list(table.fits(["Qwen9"], [2], [4], [1]))
    with pytest.raises(ValueError, match="3 frames"):
        film(without_weights(small), 3)


@pytest.mark.slow
def test_the_tables_are_printed(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = {name: table.WAYS[name] for name in ("LoRA", "whole LLM, zero2")}
    monkeypatch.setattr(table, "WAYS", ways)
    table.main(["--model", small, "--frames", "2", "16", "--group", "2", "--gpus", "1", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[4] for line in lines[2:8]] == ["any", "1", "8"] * 2
    assert lines[9].startswith("| model | trained | G | GPUs | longest prompt in 80 GB") and len(lines) == 14
