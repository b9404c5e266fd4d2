"""How the page calls and colours the evaluated stages."""

from __future__ import annotations

from mmreason.report.load import BEFORE, Run

ARROW = " \u2192 "


def stage_colours(run: Run) -> dict[str, str]:
    """Evaluated stage -> class of the style sheet: s0 is `before`, s1.. the main line, b0.. the branches."""
    line = [name for name in run.line if name != BEFORE]
    colours = {BEFORE: "s0"} | {name: f"s{1 + i % 4}" for i, name in enumerate(line)}
    return colours | {name: f"b{i % 2}" for i, name in enumerate(run.rivals)}


def stage_label(run: Run, name: str) -> str:
    """`grpo`, `before training`, `sft-more (the rival of grpo)`."""
    stage = run.stage(name)
    rival = stage.get("time_of")
    if not rival:
        return "before training" if name == BEFORE else name
    return f"rival of {rival}" if name == "rival" else f"{name} (rival of {rival})"
