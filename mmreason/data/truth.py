"""The truth of a row: what is right and how it is judged, and what leads to it: rationale, evidence, difficulty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mmreason.data.row_error import RowError, Where, short, tried
from mmreason.types import PROBLEM_TYPES

STYLES = ("structured", "free")
TRUTH_COLUMNS = (
    "solution",
    "answer",
    "problem_type",
    "options",
    "rationale",
    "evidence",
    "difficulty",
)  # read here
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Truth:
    """What is right, and how it is judged. Example: `Truth("2", (), "numeric")`."""

    solution: str | None
    options: tuple[str, ...]
    problem_type: str


def read_truth(row: Mapping[str, Any], where: Where) -> Truth:
    """Options, solution and problem type, each by itself and then together.

    Raises:
        RowError: all of them that do not fit.
    """
    problems: list[str] = []
    found_options = tried(lambda: _options(row.get("options"), where), problems)
    found_solution = tried(lambda: (_solution(row, where),), problems)
    options, solution = found_options or (), found_solution[0] if found_solution else None
    if solution is not None and options:
        tried(lambda: _check_answer(solution, options, where), problems)
    kind = tried(lambda: _problem_type(row.get("problem_type"), solution, options, where), problems)
    if kind is not None and solution is not None and not problems:
        tried(lambda: _check_type(kind, solution, options, where), problems)
    if problems or kind is None:
        raise RowError(*problems)
    return Truth(solution, options, kind)


def _check_type(kind: str, solution: str, options: Sequence[str], where: Where) -> None:
    """A number where a number is asked for, and one answer where one option is."""
    if kind == "numeric" and not re.search(r"\d", solution):
        raise where.error(
            f"solution: got {solution!r} for problem_type numeric; give a number in digits, or problem_type text"
        )
    several = "," in solution and _plain(solution) not in {_plain(option) for option in options}
    if kind == "single_choice" and options and several:
        raise where.error(
            f"solution: got {solution!r} for problem_type single_choice; give one answer, or problem_type multi_choice"
        )


def _solution(row: Mapping[str, Any], where: Where) -> str | None:
    """The ground truth as one string, tags removed; a list is joined by "," (letters) or ", " (words)."""
    key = "solution" if row.get("solution") is not None else "answer"
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [str(item).strip() for item in value]
        text = ("," if all(len(item) == 1 and item.isalpha() for item in items) else ", ").join(items)
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise where.error(f"{key}: got {short(value)}; text, a number or a list of answers is needed")
    found = _ANSWER.search(text)
    text = (found.group(1) if found else text).strip()
    if not text.strip(", "):
        raise where.error(
            f"{key}: got {short(value)}, which is empty; give the answer, or leave the column out"
        )
    return text


def _options(value: Any, where: Where) -> tuple[str, ...]:
    """Option texts; letters in front ("A. red") are cut off where every option has its own."""
    if value is None:
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(o, str) for o in value)
    ):
        raise where.error(f"options: got {short(value)}; a list of texts is needed")
    cut = [
        re.match(rf"\s*\(?{chr(ord('A') + i)}[.):]\s*(?=\S)", option) for i, option in enumerate(value[:26])
    ]
    if len(value) <= 26 and all(cut):
        value = [option[match.end() :] for option, match in zip(value, cut, strict=True) if match]
    if any(not option.strip() for option in value):
        raise where.error(f"options: got {short(value)}; an option is empty")
    if len({_plain(option) for option in value}) != len(value):
        raise where.error(f"options: got {short(value)}; two options are the same")
    return tuple(value)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .\"'`")


def _check_answer(solution: str, options: Sequence[str], where: Where) -> None:
    """Every comma-joined answer is an option's own words, or every one is a letter of an option."""
    known = {_plain(option) for option in options}
    pieces = [piece.strip() for piece in solution.split(",") if piece.strip()]
    letters = [re.sub(r"[().:\s]", "", piece).upper() for piece in pieces]
    if all(len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(options) for letter in letters):
        return
    start = 0
    while start < len(
        pieces
    ):  # an option may hold commas itself: the longest run of pieces that is an option counts
        end = next(
            (e for e in range(len(pieces), start, -1) if _plain(", ".join(pieces[start:e])) in known), None
        )
        if end is None:
            end = next(
                (e for e in range(len(pieces), start, -1) if _plain(",".join(pieces[start:e])) in known), None
            )
        if end is None:
            last = chr(ord("A") + min(len(options), 26) - 1)
            raise where.error(
                f"solution: got {pieces[start]!r}; allowed are the options {list(options)} in their own words "
                f"or the letters A to {last}: mend the solution or the options"
            )
        start = end


def _problem_type(value: Any, solution: str | None, options: Sequence[str], where: Where) -> str:
    """The given type, or what solution and options say."""
    if value is not None:
        if value not in PROBLEM_TYPES:
            near = get_close_matches(str(value), PROBLEM_TYPES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise where.error(f"problem_type: got {value!r}; allowed are {', '.join(PROBLEM_TYPES)}{hint}")
        return value
    if options:
        whole = solution is None or _plain(solution) in {_plain(option) for option in options}
        return "single_choice" if whole or "," not in (solution or "") else "multi_choice"
    return (
        "numeric"
        if solution and re.fullmatch(r"[-+]?(\d{1,3}(,\d{3})+|\d*)(\.?\d+)?%?", solution)
        else "text"
    )


def read_rationale(value: Any, where: Where) -> dict[str, str]:
    """style -> body of the think block; bare text is in free style."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = {"free": value}
    if not isinstance(value, Mapping):
        raise where.error(
            f"rationale: got {short(value)}; text, or a mapping of {', '.join(STYLES)} is needed"
        )
    out: dict[str, str] = {}
    for style, body in value.items():
        if body is None:  # parquet fills absent keys
            continue
        if style not in STYLES or not isinstance(body, str):
            raise where.error(
                f"rationale.{style}: got {short(body)}; allowed are texts named {', '.join(STYLES)}"
            )
        found = _THINK.fullmatch(body)
        out[style] = found.group(1) if found else body
    return out


def read_evidence(value: Any, where: Where) -> tuple[Mapping[str, Any], ...]:
    """Where in the media the answer is seen or heard: boxes and spans."""
    if value is None:
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(e, Mapping) for e in value)
    ):
        raise where.error(f"evidence: got {short(value)}; a list of {{box, label}} or {{span}} is needed")
    return tuple({k: v for k, v in entry.items() if v is not None} for entry in value)


def read_difficulty(value: Any, where: Where) -> float | None:
    """0 easy .. 1 hard."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise where.error(f"difficulty: got {short(value)}; a number from 0 (easy) to 1 (hard) is needed")
    return float(value)
