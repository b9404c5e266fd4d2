"""A question whose options are named, asked again with letters: what a small model that learned words loses by it."""

from __future__ import annotations

import string
from dataclasses import replace

from mmreason.rewards import answer_set, normalise, uses_letters
from mmreason.types import Message, Part, Sample


def lettered(sample: Sample) -> Sample | None:
    """The row with `A red, B blue` for `red, blue` in its question, and letters as its solution.

    None where it has no options, names them otherwise or not at all, or is answered with letters already. As in the
    worlds' `options: lettered`, the verifier takes an option's own words for its letter.

    Example: "which? options: red, blue" with solution "blue" is "which? options: A red, B blue" with solution "B".
    """
    options, solution = sample.options, sample.solution
    if not options or len(options) > len(string.ascii_uppercase) or solution is None:
        return None
    if uses_letters(solution, options):
        return None
    messages = _relisted(sample.messages, ", ".join(options), _listed(options))
    right = answer_set(solution, options, solution)
    letters = [
        a for a, text in zip(string.ascii_uppercase, options, strict=False) if normalise(text) in right
    ]
    if messages is None or len(letters) != len(right):
        return None
    return replace(sample, messages=messages, solution=",".join(letters))


def _listed(options: tuple[str, ...]) -> str:
    return ", ".join(f"{a} {text}" for a, text in zip(string.ascii_uppercase, options, strict=False))


def _relisted(messages: tuple[Message, ...], old: str, new: str) -> tuple[Message, ...] | None:
    """The messages with the last mention of `old` replaced, in a turn of the user; None where there is none."""
    for i in reversed(range(len(messages))):
        parts = messages[i].parts
        for j in reversed(range(len(parts))):
            before, found, after = parts[j].text.rpartition(old)
            if found and messages[i].role == "user":
                part = Part("text", text=before + new + after)
                turn = Message("user", (*parts[:j], part, *parts[j + 1 :]))
                return (*messages[:i], turn, *messages[i + 1 :])
    return None
