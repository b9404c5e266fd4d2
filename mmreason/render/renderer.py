"""Samples -> token ids with the masks born beside them.

A conversation becomes text pieces (context, assistant text, end of turn), each tokenised by itself, so that every
token knows whether the policy writes it: no mask is ever searched for in text. The context pieces come from the
model's chat template; an assistant turn is taken verbatim, followed by the ending that the template writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NoReturn

import torch

from mmreason.render.media import feature_count, media_arguments
from mmreason.render.recent import RecentMedia
from mmreason.render.template import ChatTemplate, RenderError, difference, text_turn
from mmreason.types import (
    ROLE_CODES,
    DecodedMedium,
    MediaKind,
    Message,
    Part,
    Rendered,
    RoleName,
    Sample,
)

KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")  # mm_token_type_ids are 1, 2, 3 in this order
_BOUNDARY = re.compile(r"<\|(vision|image|video|audio)_\w+\|>")  # tokens that open, close or hold media


@dataclass(frozen=True)
class _Piece:
    """A stretch of text that is tokenised by itself; `media` are its media in order, `ends` the end of a turn."""

    text: str
    role: RoleName
    written: bool = False  # by the policy: loss falls on it
    ends: bool = False  # written up to and including the end-of-turn token
    media: tuple[DecodedMedium, ...] = ()


class Renderer:
    """Renders samples for one processor (or a bare tokenizer, for text alone).

    Attributes:
        eos_ids: the end-of-turn token and the tokenizer's own end.
        pad_id: what rows are padded with.
        placeholder_ids: ids that must never be sampled: media placeholders and media boundaries.

    Example: `Renderer(processor).full(sample, media).sampled` is True on the assistant's text and its end of turn.
    """

    def __init__(
        self,
        processor: Any,
        *,
        system_prompt: str | None = None,
        max_prompt_length: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.system_prompt, self.max_prompt_length, self.max_length = (
            system_prompt,
            max_prompt_length,
            max_length,
        )
        self._recent = RecentMedia()
        self._chat = ChatTemplate(processor, self.tokenizer)
        self._added = {t.content: i for i, t in self.tokenizer.added_tokens_decoder.items() if not t.lstrip}
        self._tokens = self._placeholders()
        self._kind_of = {self._id(token): KINDS.index(kind) + 1 for kind, token in self._tokens.items()}
        self._ending_ids, self._end = self._end_of_turn()
        tokenizer_end = self.tokenizer.eos_token_id
        self.eos_ids: tuple[int, ...] = tuple(sorted({self._end} | ({tokenizer_end} - {None})))
        self.pad_id: int = self._end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        boundaries = {i for token, i in self._added.items() if _BOUNDARY.fullmatch(token)}
        self.placeholder_ids: tuple[int, ...] = tuple(sorted(boundaries | self._kind_of.keys()))
        turn_marks = self._chat.header + self._chat.ending
        structural = {*self.placeholder_ids, *self.eos_ids} | {
            i for t, i in self._added.items() if t in turn_marks
        }
        names = [self.tokenizer.convert_ids_to_tokens(i) for i in sorted(structural)]
        self._forbidden = re.compile("|".join(re.escape(name) for name in names))

    # --- what the other rooms call

    def prompt(self, sample: Sample, media: Sequence[DecodedMedium]) -> Rendered:
        """The conversation up to the generation prompt; a final assistant turn of the row is left out.

        Raises:
            RenderError: the row's text, media or length do not fit; names the row.
        """
        turns = self.conversation(sample, media)
        pieces = [
            replace(p, written=False, ends=False) for p in self._pieces(sample, turns, media, strict=False)
        ]
        rendered = self._encode(sample, pieces)
        self._check_prompt(sample, rendered, len(rendered))
        return rendered

    def conversation(self, sample: Sample, media: Sequence[DecodedMedium]) -> list[dict[str, Any]]:
        """The turns that `prompt` renders, with typed parts; a part of a medium names it by number as `medium`."""
        turns = self._turns(sample, media)
        return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns

    def full(self, sample: Sample, media: Sequence[DecodedMedium]) -> Rendered:
        """All turns; the text of every assistant turn and its end-of-turn token are `sampled`.

        Raises:
            RenderError: as `prompt`; also when the row does not end with an assistant turn, or the template rewrites
                an earlier one.
        """
        turns = self._turns(sample, media)
        if not turns or turns[-1]["role"] != "assistant":
            raise RenderError(
                f"row {sample.id}: got no assistant turn at its end; SFT needs one to learn from"
            )
        rendered = self._encode(sample, self._pieces(sample, turns, media, strict=True))
        self._check_prompt(sample, rendered, int(rendered.sampled.float().argmax()))
        if self.max_length is not None and len(rendered) > self.max_length:
            raise RenderError(
                f"row {sample.id}: got {len(rendered)} tokens; allowed are {self.max_length} (max_length): shorten the "
                "row or raise max_length"
            )
        return rendered

    def append(
        self, rendered: Rendered, ids: torch.Tensor | Sequence[int], sampled: torch.Tensor | Sequence[bool]
    ) -> Rendered:
        """A prompt followed by a completion: ids int [C], sampled bool [C]; roles assistant, no media in it."""
        more = torch.as_tensor(ids, dtype=torch.long)
        written = torch.as_tensor(sampled, dtype=torch.bool)
        if more.shape != written.shape:
            raise RenderError(
                f"row {rendered.sample_id}: {more.numel()} ids for {written.numel()} mask entries"
            )
        banned = [i for i in more.tolist() if i in self._kind_of]
        if banned:
            raise RenderError(
                f"row {rendered.sample_id}: the completion holds media placeholders {sorted(set(banned))}, for which "
                "there are no features; ban placeholder_ids in sampling"
            )
        return with_completion(rendered, more, written)

    def decode(self, ids: torch.Tensor | Sequence[int]) -> str:
        """Ids -> text, special tokens included: what the model wrote is what a reward reads."""
        plain = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        return self.tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # --- what the tokenizer and the processor offer

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def _knows(self, token: str) -> bool:
        """Whether it is in the vocabulary (unknown ones convert to None or to the unknown token)."""
        return self.tokenizer.convert_tokens_to_ids(token) not in (None, self.tokenizer.unk_token_id)

    def _placeholders(self) -> dict[MediaKind, str]:
        """kind -> the token that stands for a medium in the template's text."""
        found: dict[MediaKind, str] = {}
        for kind in KINDS:
            token = getattr(self.processor, f"{kind}_token", None) or getattr(
                self.tokenizer, f"{kind}_token", None
            )
            if isinstance(token, str) and self._knows(token):
                found[kind] = token
        return found

    def _end_of_turn(self) -> tuple[int, int]:
        """How many tokens of the template's ending the model writes, and the last of them: the end-of-turn token."""
        ids = self._tokenise(self._chat.ending)
        ends = set(self._added.values()) | set(self.tokenizer.all_special_ids)
        for position, token in enumerate(ids):
            if token in ends:
                return position + 1, token
        raise RenderError(
            f"the chat template ends an assistant turn with {self._chat.ending!r}, which holds no special token, so "
            "generation could not stop there; give a template with an end-of-turn token as model.chat_template"
        )

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    # --- conversation -> pieces

    def _turns(self, sample: Sample, media: Sequence[DecodedMedium]) -> list[dict[str, Any]]:
        if len(media) != len(sample.media):
            raise RenderError(
                f"row {sample.id}: {len(media)} decoded media for {len(sample.media)} of the row"
            )
        turns = [self._turn(sample, message) for message in sample.messages]
        if self.system_prompt is not None and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, text_turn("system", self.system_prompt))
        return turns

    def _turn(self, sample: Sample, message: Message) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        for part, before in zip(message.parts, (None, *message.parts), strict=False):
            if part.type == "text":
                bad = self._forbidden.search(part.text)
                if bad:
                    raise RenderError(
                        f"row {sample.id}: the {message.role} text holds {bad[0]!r}, a token that only the template "
                        "may write; remove it from the text"
                    )
                content.append({"type": "text", "text": part.text})
            elif message.role == "assistant":
                raise RenderError(
                    f"row {sample.id}: an assistant turn holds {part.type}; models write text only"
                )
            else:
                apart = {"apart": True} if _stands_apart(sample, before, part) else {}
                content.append({"type": part.type, "medium": part.medium, **apart})
        return {"role": message.role, "content": content}

    def _pieces(
        self, sample: Sample, turns: list[dict[str, Any]], media: Sequence[DecodedMedium], *, strict: bool
    ) -> list[_Piece]:
        """Context and assistant pieces in order; with `strict` off, a template that rewrites earlier turns is fine."""
        pieces: list[_Piece] = []
        done, start = "", 0
        replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        stops = replies if replies and replies[-1] == len(turns) - 1 else [*replies, len(turns)]
        for stop in stops:
            text = self._chat.text(turns[:stop], True)
            if not text.startswith(done) and not strict:
                return self._context(sample, self._chat.text(turns, True), turns, media)
            if not text.startswith(done):
                raise RenderError(
                    f"row {sample.id}: the chat template rewrites the turns before message {stop}: "
                    f"{difference(done, text)}; such a conversation cannot be trained in one row: split it, "
                    "or give a template that keeps earlier turns as model.chat_template"
                )
            pieces += self._context(sample, text[len(done) :], turns[start:stop], media)
            if stop == len(turns):
                break
            reply = "".join(part["text"] for part in turns[stop]["content"])
            pieces += [
                _Piece(reply, "assistant", written=True),
                _Piece(self._chat.ending, "assistant", ends=True),
            ]
            done, start = text + reply + self._chat.ending, stop + 1
        return pieces

    def _context(
        self, sample: Sample, text: str, turns: Sequence[dict[str, Any]], media: Sequence[DecodedMedium]
    ) -> list[_Piece]:
        """Text between two assistant turns, cut where a special token begins, so that the cut changes no token.

        What the template adds by itself before the first turn counts to that turn.
        """
        used = tuple(media[part["medium"]] for turn in turns for part in turn["content"] if "medium" in part)
        for kind in KINDS:
            token, given = self._tokens.get(kind), sum(m.kind == kind for m in used)
            if given and token is None:
                raise RenderError(
                    f"row {sample.id}: got {given} {kind} parts; this model takes {', '.join(self._tokens) or 'text'}"
                )
            written = text.count(token) if token else 0
            if written != given:
                raise RenderError(
                    f"row {sample.id}: the chat template writes {written} {kind} placeholders for {given} {kind} "
                    "parts; give a template that writes one for each as model.chat_template"
                )
        self._keeps_apart(sample, text, turns)
        pieces: list[_Piece] = []
        if turns and turns[0]["role"] == "system" and not any("medium" in p for p in turns[0]["content"]):
            system = self._chat.system(turns[0])
            if system and text.startswith(system) and self._starts_special(text[len(system) :]):
                pieces.append(_Piece(system, "system"))
                text = text[len(system) :]
        header = self._chat.header
        cut = len(header) if text.endswith(header) and self._starts_special(header) else 0
        role: RoleName = turns[-1]["role"] if turns else "user"
        pieces.append(_Piece(text[: len(text) - cut], role, media=used))
        return [*pieces, _Piece(header, "assistant")] if cut else pieces

    def _keeps_apart(self, sample: Sample, text: str, turns: Sequence[dict[str, Any]]) -> None:
        """Refuse a template that writes a sound of another file as a video's own."""
        parts = [part for turn in turns for part in turn["content"]]
        other = [part["medium"] for part in parts if part.get("apart")]
        own = sum(
            (a["type"], b["type"]) == ("video", "audio") and "apart" not in b for a, b in pairwise(parts)
        )
        if other and text.count(self._tokens["video"] + self._tokens["audio"]) > own:
            raise RenderError(
                f"row {sample.id}: {sample.media[other[0]].path} is not the sound of the video before it, but the chat "
                "template writes it as if it were; put words between the two, or give a template that minds a part's "
                "`apart` as model.chat_template"
            )

    def _starts_special(self, text: str) -> bool:
        return any(text.startswith(token) for token in self._added)

    # --- pieces -> ids, masks, media tensors

    def _encode(self, sample: Sample, pieces: Iterable[_Piece]) -> Rendered:
        ids: list[int] = []
        roles: list[int] = []
        sampled: list[bool] = []
        tensors: dict[str, list[torch.Tensor]] = {}
        for piece in pieces:
            if not piece.text:
                continue
            if piece.media:
                new, made = self._process(sample, piece)
                for name, tensor in made.items():
                    tensors.setdefault(name, []).append(tensor)
            else:
                new = self._tokenise(piece.text)
            written = len(new) if piece.written else self._ending_ids if piece.ends else 0
            ids += new
            roles += [ROLE_CODES[piece.role]] * len(new)
            sampled += [True] * written + [False] * (len(new) - written)
        return Rendered(
            sample_id=sample.id,
            ids=torch.tensor(ids, dtype=torch.long),
            roles=torch.tensor(roles, dtype=torch.int8),
            sampled=torch.tensor(sampled, dtype=torch.bool),
            token_types=torch.tensor([self._kind_of.get(i, 0) for i in ids], dtype=torch.long),
            media={name: torch.cat(parts) for name, parts in tensors.items()},
        )

    def _process(self, sample: Sample, piece: _Piece) -> tuple[list[int], dict[str, torch.Tensor]]:
        """Ids with one placeholder per feature, and the media tensors, by the model's own processor.

        Questions on the same media come one after the other; what was made of those media is then used again.
        """
        known = self._recent.get(piece.text, piece.media, self._tokens.values())
        if known is not None:
            ids, tensors, rest = known
            return ids + self._tokenise(rest), tensors
        ids, tensors = self._process_anew(sample, piece)
        self._recent.put(piece.text, piece.media, self._tokens.values(), ids, tensors, self._tokenise)
        return ids, tensors

    def _process_anew(self, sample: Sample, piece: _Piece) -> tuple[list[int], dict[str, torch.Tensor]]:
        try:
            inputs = media_arguments(self.processor, piece.media)
            made = self.processor(text=[piece.text], add_special_tokens=False, return_tensors="pt", **inputs)
        except (ValueError, AssertionError) as error:  # the processors' way to refuse a medium
            _fail(sample, piece, str(error), error)
        ids = made["input_ids"][0].tolist()
        tensors = {
            name: torch.as_tensor(value)
            for name, value in made.items()
            if name not in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
        }
        for kind, token in self._tokens.items():
            media, got = [m for m in piece.media if m.kind == kind], ids.count(self._id(token))
            wanted = feature_count(self.processor, kind, media, tensors)
            if got < len(media) or (wanted is not None and got != wanted):
                _fail(sample, piece, f"{got} {kind} placeholder tokens for {wanted} {kind} features")
        return ids, tensors

    def _check_prompt(self, sample: Sample, rendered: Rendered, length: int) -> None:
        if self.max_prompt_length is None or length <= self.max_prompt_length:
            return
        media = int((rendered.token_types[:length] > 0).sum())
        raise RenderError(
            f"row {sample.id}: got a prompt of {length} tokens ({media} of them media); allowed are "
            f"{self.max_prompt_length} (max_prompt_length): shorten the question, lower model.max_pixels, or raise "
            "max_prompt_length"
        )


def _stands_apart(sample: Sample, before: Part | None, part: Part) -> bool:
    """Whether a sound that follows a video is another file's: templates take it for the video's own otherwise."""
    if part.type != "audio" or before is None or before.type != "video":
        return False
    film, sound = sample.media[before.medium], sample.media[part.medium]
    return (film.root, film.path, film.content) != (sound.root, sound.path, sound.content)


def _fail(sample: Sample, piece: _Piece, why: str, cause: BaseException | None = None) -> NoReturn:
    names = ", ".join(m.name for m in piece.media)
    raise RenderError(f"row {sample.id}: {names}: {why}") from cause


def with_completion(prompt: Rendered, ids: torch.Tensor, sampled: torch.Tensor) -> Rendered:
    """The prompt, in which nothing is sampled, with a completion behind it that keeps the mask it was born with.

    Example: a prompt of 3 tokens and ids [8, 2], sampled [1, 1] give 5 tokens with sampled [0, 0, 0, 1, 1].
    """
    roles = torch.full_like(ids, ROLE_CODES["assistant"], dtype=torch.int8)
    return replace(
        prompt,
        ids=torch.cat([prompt.ids, ids]),
        roles=torch.cat([prompt.roles, roles]),
        sampled=torch.cat([torch.zeros_like(prompt.sampled), sampled]),
        token_types=torch.cat([prompt.token_types, torch.zeros_like(ids)]),
    )
