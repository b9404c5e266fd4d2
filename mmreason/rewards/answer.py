"""Reading a completion: its thought, its answer, and the set of options an answer names.

A completion is `<think>BODY</think><answer>ANSWER</answer>`. Several answers are comma-joined, either as
letters ("A,C") or as the options' own words ("red, blue"); which of the two a question uses is read off its
solution.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from mmreason.types import Sample

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_LETTER_AND_TEXT = re.compile(r"\(?\s*([A-Za-z])\s*[).:]+\s*(.+)", re.DOTALL)
_WEAK_SEPARATOR = re.compile(r"\s*(?:[;/&\n]|\band\b)\s*|\s+", re.IGNORECASE)
_WORD_SEPARATOR = re.compile(r"\s*(?:[;/&\n]|\band\b)\s*", re.IGNORECASE)


def think_body(text: str) -> str | None:
    """Body of the first complete think block; None when there is none. An empty thought gives "" or blanks."""
    found = _THINK.search(text)
    return found.group(1) if found else None


def parse_answer(text: str) -> str | None:
    """The stripped answer of a completion, or None when it gives none.

    The first `<answer>` block after the thought counts. A text without tags is its own answer, so that a
    model which was never taught the tags can be judged; an unfinished thought or an unclosed answer block
    is no answer.
    """
    if "</think>" in text:
        text = text.split("</think>", 1)[1]
    elif "<think>" in text:
        return None
    found = _ANSWER.search(text)
    if found:
        return found.group(1).strip()
    return None if "<answer>" in text else text.strip() or None


def normalise(text: str) -> str:
    """Text as it is compared: NFKC, case folded, blanks collapsed, enclosing quotes and full stops dropped."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(" .\"'`") or folded


def solution_text(sample: Sample) -> str | None:
    """The sample's solution without answer tags; None when it has no truth."""
    if sample.solution is None:
        return None
    found = _ANSWER.search(sample.solution)
    return (found.group(1) if found else sample.solution).strip()


def uses_letters(solution: str, options: Sequence[str]) -> bool:
    """Whether the question is answered with letters: its solution is letters and not the options' own words."""
    named = _reader_named(options)
    if options and all(named(piece) for piece in _split(solution, named)):
        return False
    pieces = [piece for piece in solution.split(",") if piece.strip()]
    return bool(pieces) and all(_letter(piece, len(options) or 26) for piece in pieces)


def answer_set(solution: str | Sample, options: Sequence[str], text: str) -> frozenset[str]:
    """The answers that `text` gives to a question whose truth is `solution`, in one canonical spelling.

    Lettered questions give upper-case letters; "a", "(A)", "A.", "A) red" and the option's own words are
    the same answer. Named ones give the options' words, normalised. Options that contain commas are
    recognised whole. What names no option is kept as it stands, so it can never be part of the truth. No
    text gives the empty set.

    Example: `answer_set("A,C", ("red", "blue", "green"), "(c), a")` is `{"A", "C"}`.
    """
    truth = (solution_text(solution) or "") if isinstance(solution, Sample) else solution
    read = _reader_lettered(options) if uses_letters(truth, options) else _reader_named(options)
    separator = _WEAK_SEPARATOR if uses_letters(truth, options) else _WORD_SEPARATOR
    answers: set[str] = set()
    for piece in _split(text, read):
        known = read(piece)
        parts = [part for part in separator.split(piece) if part]
        if known is not None:
            answers.add(known)
        elif len(parts) > 1 and all(read(part) is not None for part in parts):
            answers.update(value for value in map(read, parts) if value is not None)
        else:
            answers.add(normalise(piece))
    return frozenset(answers)


def _letter(text: str, count: int) -> str | None:
    """The letter that `text` is after stripping case, '.', '()' and ':', if it is one of the first `count`."""
    bare = re.sub(r"[().:\s]", "", text).upper()
    return bare if len(bare) == 1 and "A" <= bare <= "Z" and ord(bare) - ord("A") < count else None


def _reader_lettered(options: Sequence[str]) -> Callable[[str], str | None]:
    texts = {normalise(option): chr(ord("A") + i) for i, option in enumerate(options[:26])}

    def read(piece: str) -> str | None:
        letter = _letter(piece, len(options) or 26)
        if letter is not None:
            return letter
        found = _LETTER_AND_TEXT.fullmatch(piece.strip())
        if found and texts.get(normalise(found.group(2))) == found.group(1).upper():
            return found.group(1).upper()
        return texts.get(normalise(piece))

    return read


def _reader_named(options: Sequence[str]) -> Callable[[str], str | None]:
    known = {normalise(option) for option in options}

    def read(piece: str) -> str | None:
        text = normalise(piece)
        return text if text in known else None

    return read


def _split(text: str, read: Callable[[str], str | None]) -> list[str]:
    """Comma-joined pieces; the longest run that `read` knows stays whole ("red, blue" as one option)."""
    pieces = text.split(",")
    out: list[str] = []
    start = 0
    while start < len(pieces):
        end = start + 1
        for stop in range(min(len(pieces), start + 8), start + 1, -1):
            if read(",".join(pieces[start:stop])) is not None:
                end = stop
                break
        joined = ",".join(pieces[start:end])
        if joined.strip():
            out.append(joined)
        start = end
    return out
