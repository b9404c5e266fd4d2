"""What happens to a sample before it is rendered: its SFT target, and thought dropout.

Thought dropout is TON's (arXiv 2505.16854): a share of the targets has its thought emptied to "\\n\\n", so that a
model learns that it may answer at once. The draw depends on the row's id and the seed, never on its difficulty.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmreason.schema import Style
from mmreason.types import Message, Part, Sample

EMPTY_THOUGHT = "\n\n"
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)


def target_text(sample: Sample, style: Style) -> str:
    """`<think>BODY</think><answer>ANSWER</answer>` with the rationale of `style`; "none" leaves the thought empty.

    Raises:
        ValueError: the row has no solution, or no rationale of this style.
    """
    if sample.solution is None:
        raise ValueError(f"row {sample.id}: no solution and no assistant turn; SFT needs one of them")
    if style != "none" and style not in sample.rationale:
        raise ValueError(
            f"row {sample.id}: no rationale in style {style!r}; the row has "
            f"{sorted(sample.rationale) or 'none'}: add it, or set the stage's rationale to another style or to none"
        )
    body = EMPTY_THOUGHT if style == "none" else sample.rationale[style]
    return f"<think>{body}</think><answer>{sample.solution}</answer>"


def thought_dropout(sample_id: str, seed: int, p: float) -> bool:
    """Whether this row's thought is dropped: true for a share `p` of all ids, the same ones for the same seed.

    Example: over many ids the share of True is `p`; ids dropped at p=0.2 are dropped at p=0.5 too.
    """
    digest = hashlib.blake2b(f"{seed}:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < p


def supervised(sample: Sample, style: Style, dropout: float, seed: int) -> Sample:
    """The sample with its target turn: the row's own assistant turn if it ends with one, else built by `target_text`.

    Dropout empties the thought of either; `seed` and `sample.id` decide it once and for all.
    """
    drop = thought_dropout(sample.id, seed, dropout)
    if sample.messages and sample.messages[-1].role == "assistant":
        own = "".join(part.text for part in sample.messages[-1].parts)
        text = _THINK.sub(lambda _: f"<think>{EMPTY_THOUGHT}</think>", own, count=1) if drop else own
        return replace(sample, messages=(*sample.messages[:-1], Message("assistant", (Part("text", text),))))
    text = target_text(sample, "none" if drop else style)
    return replace(sample, messages=(*sample.messages, Message("assistant", (Part("text", text),))))


def by_media(samples: Sequence[Sample], most: int) -> list[tuple[Sample, ...]]:
    """Up to `most` samples that begin alike, up to their last medium, together, in the place of their first.

    Those without media stay alone, and so do those with an assistant turn before the last medium: it is learned once
    for each of them.

    Example: two questions on one picture and one on another give, with most=2, a pair and a single one.
    """
    open_groups: dict[tuple[Any, ...], int] = {}
    groups: list[list[Sample]] = []
    for sample in samples:
        key = _beginning(sample)
        at = open_groups.get(key) if key is not None else None
        if at is not None and len(groups[at]) < most:
            groups[at].append(sample)
            continue
        if key is not None:
            open_groups[key] = len(groups)
        groups.append([sample])
    return [tuple(group) for group in groups]


def _beginning(sample: Sample) -> tuple[Any, ...] | None:
    """The media of a row and all that stands before the last of them; None where rows cannot share it."""
    turns = [i for i, turn in enumerate(sample.messages) if any(part.type != "text" for part in turn.parts)]
    if not turns or any(turn.role == "assistant" for turn in sample.messages[: turns[-1]]):
        return None
    last = sample.messages[turns[-1]]
    end = 1 + max(i for i, part in enumerate(last.parts) if part.type != "text")
    return sample.media, sample.messages[: turns[-1]], last.role, last.parts[:end]
