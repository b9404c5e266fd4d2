"""The conversation of a row: its turns of typed parts, and the media that these name, in order of appearance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmreason.data.row_error import Where, short
from mmreason.types import MediaKind, MediumRef, Message, Part

KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")
ROLES = ("system", "user", "assistant", "tool")
TEXT_COLUMNS = ("problem", "prompt", "question")
LIST_COLUMNS = {f"{kind}s": kind for kind in KINDS}
CONVERSATION_COLUMNS = ("messages", *TEXT_COLUMNS, *LIST_COLUMNS, *KINDS)  # that are read here
_MARKER = re.compile("(<(?:image|video|audio)>)")


def read_conversation(
    row: Mapping[str, Any], where: Where
) -> tuple[tuple[Message, ...], tuple[MediumRef, ...]]:
    """Messages with parts that point into the media, which are listed in order of appearance.

    Raises:
        RowError: no messages, a turn or part that is none, or media that differ from their markers.
    """
    raw = row.get("messages")
    if raw is None:
        named = [c for c in TEXT_COLUMNS if row.get(c) is not None]
        if not named:
            raise where.error(f"no messages; give messages, or one of {', '.join(TEXT_COLUMNS)} as text")
        raw = row[named[0]]
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    if not isinstance(raw, Sequence) or not raw:
        raise where.error(f"messages: got {short(raw)}; a list of {{role, content}} is needed")
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
    row: Mapping[str, Any], raw: Sequence[Any], given: dict[MediaKind, list[Any]], where: Where
) -> Sequence[Any]:
    """Media of the columns `image`, `video`, `audio` become lists of one in `given`; without a marker they are put
    before the text of the first user turn, which is returned with the others.
    """
    singles = [kind for kind in KINDS if row.get(kind) is not None]
    for kind in singles:
        if given[kind]:
            raise where.error(f"got both {kind} and {kind}s; give one of the two columns")
        if isinstance(row[kind], Sequence) and not isinstance(row[kind], str | bytes):
            raise where.error(f"{kind}: got {short(row[kind])}; it holds one medium: name the column {kind}s")
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


def _media_list(row: Mapping[str, Any], column: str, where: Where) -> list[Any]:
    items = row.get(column)
    if items is None:
        return []
    if isinstance(items, str | bytes | Mapping):
        return [items]
    if not isinstance(items, Sequence):
        raise where.error(f"{column}: got {short(items)}; a list of paths is needed")
    return list(items)


def _message(
    turn: Any, index: int, waiting: dict[MediaKind, list[Any]], media: list[MediumRef], where: Where
) -> Message:
    at = f"messages.{index}"
    if not isinstance(turn, Mapping) or "content" not in turn:
        raise where.error(f"{at}: got {short(turn)}; a turn is {{role, content}}")
    role = turn.get("role")
    if role not in ROLES:
        raise where.error(f"{at}.role: got {role!r}; allowed are {', '.join(ROLES)}")
    content = turn["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise where.error(f"{at}.content: got {short(content)}; text or a list of typed parts is needed")
    parts: list[Part] = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        parts += _parts(part, f"{at}.content.{i}", waiting, media, where)
    return Message(role, tuple(parts))


def _parts(
    part: Any, at: str, waiting: dict[MediaKind, list[Any]], media: list[MediumRef], where: Where
) -> list[Part]:
    """One given part -> parts: text is cut at its markers where the row has a list of such media."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *KINDS):
        raise where.error(f"{at}: got {short(part)}; a part has type text, image, video or audio")
    if kind != "text":
        value = next((part[key] for key in (kind, "path", "url") if part.get(key) is not None), None)
        return [_medium(kind, value, at, waiting, media, where)]
    text = part.get("text")
    if not isinstance(text, str):
        raise where.error(f"{at}.text: got {short(text)}; text is needed")
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
    where: Where,
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
        raise where.error(f"{at}: got {short(value)}; {kind} takes a path, or {{bytes, path}} in parquet")
    media.append(MediumRef(kind, path, root=where.root, content=content))
    return Part(kind, medium=len(media) - 1)
