"""One row of a file -> one Sample; what does not fit is named by row and column.

Two shapes of a row: `messages` with typed content parts, or text (`messages`, `problem`, `prompt` or `question`)
with `<image>`, `<video>`, `<audio>` markers beside lists `images`, `videos`, `audios`. A column `image`, `video` or
`audio` holds one medium; without a marker of its own it comes first, before the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from mmreason.types import PROBLEM_TYPES, MediaKind, MediumRef, Message, Part, Sample

T = TypeVar("T")
KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")
ROLES = ("system", "user", "assistant", "tool")
STYLES = ("structured", "free")
TEXT_COLUMNS = ("problem", "prompt", "question")
LIST_COLUMNS = {f"{kind}s": kind for kind in KINDS}
_MARKER = re.compile("(<(?:image|video|audio)>)")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_USED = {
    "id", "messages", "solution", "answer", "problem_type", "options", "rationale", "evidence", "difficulty",
    *TEXT_COLUMNS, *LIST_COLUMNS, *KINDS,
}  # fmt: skip


class RowError(ValueError):
    """A row, or a file of rows, that does not fit; names the row, what was got, what is allowed, what to do.

    `problems` are all that was found, one line each; the text is these lines.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class _Where:
    """Where a row comes from, for messages and media."""

    source: str
    line: int
    root: str

    def error(self, text: str) -> RowError:
        """The error of this row."""
        return RowError(f"data.{self.source}, row {self.line}: {text}")


def parse_row(row: Mapping[str, Any] | str, *, source: str, line: int, root: str) -> Sample:
    """One row -> Sample. A string is a line of JSON.

    Args:
        source: the recipe's name of the data; `Sample.source`.
        line: the row's number in its file, from 1.
        root: the folder that media paths are relative to and must stay inside.

    Raises:
        RowError: what does not fit, by row and column.

    Example: `{"question": "<image>How many?", "images": ["3.png"], "solution": "2"}`.
    """
    where = _Where(source, line, root)
    if isinstance(row, str):
        try:
            row = json.loads(row)
        except json.JSONDecodeError as error:
            raise where.error(f"no JSON ({error}); each line is one JSON object") from error
    if not isinstance(row, Mapping):
        raise where.error(f"got a {type(row).__name__}; each row is a JSON object")
    problems: list[str] = []
    conversation = _tried(lambda: _conversation(row, where), problems)
    truth = _tried(lambda: _truth(row, where), problems)
    rationale = _tried(lambda: _rationale(row.get("rationale"), where), problems)
    evidence = _tried(lambda: _evidence(row.get("evidence"), where), problems)
    difficulty = _tried(lambda: (_difficulty(row.get("difficulty"), where),), problems)
    if conversation is None or truth is None or rationale is None or evidence is None or difficulty is None:
        raise RowError(*problems)
    return Sample(
        id=_id(row, where),
        source=source,
        messages=conversation[0],
        media=conversation[1],
        solution=truth.solution,
        problem_type=truth.problem_type,
        options=truth.options,
        rationale=rationale,
        evidence=evidence,
        difficulty=difficulty[0],
        columns={key: value for key, value in row.items() if key not in _USED},
    )


def _tried(part: Callable[[], T], problems: list[str]) -> T | None:
    """A part of the row, or None and its problems among `problems`: the other parts are looked at all the same."""
    try:
        return part()
    except RowError as error:
        problems.extend(error.problems)
        return None


def _id(row: Mapping[str, Any], where: _Where) -> str:
    given = row.get("id")
    return f"{where.source}:{where.line}" if given is None or given == "" else str(given)


# --- messages and media


def _conversation(row: Mapping[str, Any], where: _Where) -> tuple[tuple[Message, ...], tuple[MediumRef, ...]]:
    """Messages with parts that point into the media, which are listed in order of appearance."""
    raw = row.get("messages")
    if raw is None:
        named = [c for c in TEXT_COLUMNS if row.get(c) is not None]
        if not named:
            raise where.error(f"no messages; give messages, or one of {', '.join(TEXT_COLUMNS)} as text")
        raw = row[named[0]]
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    if not isinstance(raw, Sequence) or not raw:
        raise where.error(f"messages: got {_short(raw)}; a list of {{role, content}} is needed")
    given = {kind: _media_list(row, column, where) for column, kind in LIST_COLUMNS.items()}
    raw = _singles_first(row, raw, given, where)
    waiting = {kind: list(items) for kind, items in given.items()}
    media: list[MediumRef] = []
    messages = [_message(turn, i, waiting, media, where) for i, turn in enumerate(raw)]
    for kind, left in waiting.items():
        if left:
            used = len(given[kind]) - len(left)
            raise where.error(
                f"{used} <{kind}> markers for {len(given[kind])} {kind}s; give one marker in the text for each entry "
                f"of {kind}s"
            )
    if not any(part.type != "text" or part.text.strip() for message in messages for part in message.parts):
        raise where.error("messages: got no text and no media; the question is empty")
    return tuple(messages), tuple(media)


def _singles_first(
    row: Mapping[str, Any], raw: Sequence[Any], given: dict[MediaKind, list[Any]], where: _Where
) -> Sequence[Any]:
    """Media of the columns `image`, `video`, `audio` become lists of one in `given`; without a marker they are put
    before the text of the first user turn, which is returned with the others.
    """
    singles = [kind for kind in KINDS if row.get(kind) is not None]
    for kind in singles:
        if given[kind]:
            raise where.error(f"got both {kind} and {kind}s; give one of the two columns")
        if isinstance(row[kind], Sequence) and not isinstance(row[kind], str | bytes):
            raise where.error(
                f"{kind}: got {_short(row[kind])}; it holds one medium: name the column {kind}s"
            )
        given[kind] = [row[kind]]
    said = json.dumps(raw, default=str)
    unmarked = [kind for kind in singles if f"<{kind}>" not in said and not _holds(raw, kind)]
    user = next(
        (i for i, turn in enumerate(raw) if isinstance(turn, Mapping) and turn.get("role") == "user"), None
    )
    if not unmarked or user is None:
        return raw
    content = raw[user].get("content")
    parts = [content] if isinstance(content, str) else list(content or ())
    marked = {**raw[user], "content": [*({"type": kind} for kind in unmarked), *parts]}
    return [*raw[:user], marked, *raw[user + 1 :]]


def _holds(raw: Sequence[Any], kind: MediaKind) -> bool:
    """Whether some turn has a typed part of this kind."""
    contents = [turn.get("content") for turn in raw if isinstance(turn, Mapping)]
    parts = [
        p for content in contents if isinstance(content, Sequence) for p in content if isinstance(p, Mapping)
    ]
    return any(part.get("type") == kind for part in parts)


def _media_list(row: Mapping[str, Any], column: str, where: _Where) -> list[Any]:
    items = row.get(column)
    if items is None:
        return []
    if isinstance(items, str | bytes | Mapping):
        return [items]
    if not isinstance(items, Sequence):
        raise where.error(f"{column}: got {_short(items)}; a list of paths is needed")
    return list(items)


def _message(
    turn: Any, index: int, waiting: dict[MediaKind, list[Any]], media: list[MediumRef], where: _Where
) -> Message:
    at = f"messages.{index}"
    if not isinstance(turn, Mapping) or "content" not in turn:
        raise where.error(f"{at}: got {_short(turn)}; a turn is {{role, content}}")
    role = turn.get("role")
    if role not in ROLES:
        raise where.error(f"{at}.role: got {role!r}; allowed are {', '.join(ROLES)}")
    content = turn["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise where.error(f"{at}.content: got {_short(content)}; text or a list of typed parts is needed")
    parts: list[Part] = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        parts += _parts(part, f"{at}.content.{i}", waiting, media, where)
    return Message(role, tuple(parts))


def _parts(
    part: Any, at: str, waiting: dict[MediaKind, list[Any]], media: list[MediumRef], where: _Where
) -> list[Part]:
    """One given part -> parts: text is cut at its markers where the row has a list of such media."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *KINDS):
        raise where.error(f"{at}: got {_short(part)}; a part has type text, image, video or audio")
    if kind != "text":
        value = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
        return [_medium(kind, value, at, waiting, media, where)]
    text = part.get("text")
    if not isinstance(text, str):
        raise where.error(f"{at}.text: got {_short(text)}; text is needed")
    out: list[Part] = []
    for piece in _MARKER.split(text):
        if _MARKER.fullmatch(piece):
            out.append(_medium(piece[1:-1], None, at, waiting, media, where))  # type: ignore[arg-type]
        elif piece:
            out.append(Part("text", text=piece))
    return out


def _medium(
    kind: MediaKind,
    value: Any,
    at: str,
    waiting: dict[MediaKind, list[Any]],
    media: list[MediumRef],
    where: _Where,
) -> Part:
    """The medium that a part names, or the next of the row's list."""
    if value is None:
        if not waiting[kind]:
            used = sum(ref.kind == kind for ref in media)
            raise where.error(
                f"{at}: the {kind} number {used + 1} has no file; there are more <{kind}> markers and parts without a "
                f"path than entries of {kind}s ({used}): give one entry of {kind}s for each, or a path"
            )
        value = waiting[kind].pop(0)
    if isinstance(value, bytes):
        value = {"bytes": value}
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path") or ""
    else:
        content, path = None, value
    if (
        content is not None
        and not isinstance(content, bytes)
        or not isinstance(path, str)
        or not (path or content)
    ):
        raise where.error(f"{at}: got {_short(value)}; {kind} takes a path, or {{bytes, path}} in parquet")
    media.append(MediumRef(kind, path, root=where.root, content=content))
    return Part(kind, medium=len(media) - 1)


# --- truth


@dataclass(frozen=True)
class _Truth:
    """What is right, and how it is judged. Example: `_Truth("2", (), "numeric")`."""

    solution: str | None
    options: tuple[str, ...]
    problem_type: str


def _truth(row: Mapping[str, Any], where: _Where) -> _Truth:
    """Options, solution and problem type, each by itself and then together."""
    problems: list[str] = []
    found_options = _tried(lambda: _options(row.get("options"), where), problems)
    found_solution = _tried(lambda: (_solution(row, where),), problems)
    options, solution = found_options or (), found_solution[0] if found_solution else None
    if solution is not None and options:
        _tried(lambda: _check_answer(solution, options, where), problems)
    kind = _tried(lambda: _problem_type(row.get("problem_type"), solution, options, where), problems)
    if kind is not None and solution is not None and not problems:
        _tried(lambda: _check_type(kind, solution, options, where), problems)
    if problems or kind is None:
        raise RowError(*problems)
    return _Truth(solution, options, kind)


def _check_type(kind: str, solution: str, options: Sequence[str], where: _Where) -> None:
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


def _solution(row: Mapping[str, Any], where: _Where) -> str | None:
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
        raise where.error(f"{key}: got {_short(value)}; text, a number or a list of answers is needed")
    found = _ANSWER.search(text)
    text = (found.group(1) if found else text).strip()
    if not text.strip(", "):
        raise where.error(
            f"{key}: got {_short(value)}, which is empty; give the answer, or leave the column out"
        )
    return text


def _options(value: Any, where: _Where) -> tuple[str, ...]:
    """Option texts; letters in front ("A. red") are cut off where every option has its own."""
    if value is None:
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(o, str) for o in value)
    ):
        raise where.error(f"options: got {_short(value)}; a list of texts is needed")
    cut = [
        re.match(rf"\s*\(?{chr(ord('A') + i)}[.):]\s*(?=\S)", option) for i, option in enumerate(value[:26])
    ]
    if len(value) <= 26 and all(cut):
        value = [option[match.end() :] for option, match in zip(value, cut, strict=True) if match]
    if any(not option.strip() for option in value):
        raise where.error(f"options: got {_short(value)}; an option is empty")
    if len({_plain(option) for option in value}) != len(value):
        raise where.error(f"options: got {_short(value)}; two options are the same")
    return tuple(value)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .\"'`")


def _check_answer(solution: str, options: Sequence[str], where: _Where) -> None:
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


def _problem_type(value: Any, solution: str | None, options: Sequence[str], where: _Where) -> str:
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


def _rationale(value: Any, where: _Where) -> dict[str, str]:
    """style -> body of the think block; bare text is in free style."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = {"free": value}
    if not isinstance(value, Mapping):
        raise where.error(
            f"rationale: got {_short(value)}; text, or a mapping of {', '.join(STYLES)} is needed"
        )
    out: dict[str, str] = {}
    for style, body in value.items():
        if body is None:  # parquet fills absent keys
            continue
        if style not in STYLES or not isinstance(body, str):
            raise where.error(
                f"rationale.{style}: got {_short(body)}; allowed are texts named {', '.join(STYLES)}"
            )
        found = _THINK.fullmatch(body)
        out[style] = found.group(1) if found else body
    return out


def _evidence(value: Any, where: _Where) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(e, Mapping) for e in value)
    ):
        raise where.error(f"evidence: got {_short(value)}; a list of {{box, label}} or {{span}} is needed")
    return tuple({k: v for k, v in entry.items() if v is not None} for entry in value)


def _difficulty(value: Any, where: _Where) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise where.error(f"difficulty: got {_short(value)}; a number from 0 (easy) to 1 (hard) is needed")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
