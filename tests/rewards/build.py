"""Small groups for reward and curriculum tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmreason.types import Group, Message, Part, Rendered, Sample, Trajectory

COLOURS = ("red", "blue", "green", "grey")


def sample(
    solution: str | None, problem_type: str = "text", options: Sequence[str] = (), **more: Any
) -> Sample:
    more = {"id": "row:1", "source": "rows", **more}
    question = (Message("user", (Part("text", text="Which?"),)),)
    return Sample(
        messages=question, solution=solution, problem_type=problem_type, options=tuple(options), **more
    )


def tagged(answer: str, thought: str = "hm") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def trajectory(text: str = "", length: int = 2, **more: Any) -> Trajectory:
    more = {"finish": "stop", **more}
    return Trajectory(torch.arange(length), torch.ones(length, dtype=torch.bool), text, **more)


def group(of: Sample, trajectories: Sequence[Trajectory | str]) -> Group:
    ids = torch.tensor([5, 7])
    prompt = Rendered(of.id, ids, torch.ones(2, dtype=torch.int8), torch.zeros(2, dtype=torch.bool), ids * 0)
    made = tuple(trajectory(t) if isinstance(t, str) else t for t in trajectories)
    return Group(of, prompt, made)
