"""The strict answer format: `<think>BODY</think><answer>ANSWER</answer>` and nothing around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmreason.types import Group

_STRICT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def strict_format(text: str) -> bool:
    """F-strict: the whole text is one think block, optional blanks, one answer block.

    An empty body is legal; a missing think block, and any character before or after (a newline too), is
    not. The usual regular expression also lets a second block hide inside a body; here each tag may appear
    only once.
    """
    return _STRICT.fullmatch(text) is not None and all(text.count(tag) == 1 for tag in _TAGS)


def format_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """1 where the completion is in the strict format, else 0."""
    return [float(strict_format(t.text)) for t in group.trajectories]
