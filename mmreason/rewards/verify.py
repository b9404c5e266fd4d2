"""The exact verifier: is the answer right? One rule for each problem type; 1, 0, or None without a truth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from mmreason.rewards.answer import answer_set, normalise, parse_answer, solution_text
from mmreason.types import PROBLEM_TYPES, Group, Sample

# Three exponent digits at most: an exact fraction of 1e999999999 would never end.
_DECIMAL = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?")
_RATIO = re.compile(r"([-+]?\d+)\s*/\s*(\d+)")
CHOICE_TYPES = ("single_choice", "multi_choice")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a number as people write it: 3, 3.0, 1,200, 2.5e3, 3/4, $4, 50% (as 50).

    None when the text is anything else (a unit, a sentence, a formula). Nothing is evaluated.
    """
    bare = text.strip().replace("\u2212", "-").lstrip("$").rstrip("%").rstrip(".").strip()
    if len(bare) > 64:
        return None
    ratio = _RATIO.fullmatch(bare)
    if ratio:
        return Fraction(int(ratio.group(1)), int(ratio.group(2))) if int(ratio.group(2)) else None
    plain = bare.replace(",", "")
    if _DECIMAL.fullmatch(bare) and re.match(r"[-+]?\.?\d", plain):
        return Fraction(plain)
    return None


def verify(sample: Sample, text: str) -> float | None:
    """Exact accuracy of a completion: 1.0 or 0.0; None when the sample has no solution.

    single_choice and multi_choice compare sets of options (all of them and no other), numeric compares values
    ("3" is "3.0"), text compares normalised words. A completion without an answer is wrong.
    """
    truth = solution_text(sample)
    if truth is None:
        return None
    if sample.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"row {sample.id}: problem_type {sample.problem_type!r} is not one of "
            f"{list(PROBLEM_TYPES)}; correct the row"
        )
    answer = parse_answer(text)
    if not answer:
        return 0.0
    if sample.problem_type in CHOICE_TYPES:
        return float(answer_set(truth, sample.options, answer) == answer_set(truth, sample.options, truth))
    if sample.problem_type == "numeric":
        given, wanted = parse_number(answer), parse_number(truth)
        if given is not None and wanted is not None:
            return float(given == wanted)
    return float(normalise(answer) == normalise(truth))


def exact_reward(group: Group, args: Mapping[str, Any]) -> list[float | None]:
    """The verifier's verdict as a reward."""
    return [verify(group.sample, t.text) for t in group.trajectories]
