"""What a chat template writes, piece by piece, and the checks that make it trainable."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from mmreason.types import RoleName

_PROBE, _REPLY = "probe-question", "probe-reply"


class RenderError(ValueError):
    """A row that cannot be rendered, or a chat template that cannot be trained with."""


class ChatTemplate:
    """The template of one processor.

    Attributes:
        header: what it adds after the context to prompt the model.
        ending: what it writes after an assistant turn's text.

    Raises:
        RenderError: there is none; its prompt is not a prefix of the conversation that goes on; it opens the thought
            by itself; or it writes nothing after an assistant turn.
    """

    def __init__(self, processor: Any, tokenizer: Any) -> None:
        template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        if isinstance(template, Mapping):
            template = template.get("default")
        if not template:
            raise RenderError(
                f"{type(processor).__name__} has no chat template, so messages cannot be rendered; give a jinja file "
                "as model.chat_template"
            )
        self._tokenizer, self._template = tokenizer, template
        question, reply = text_turn("user", _PROBE), text_turn("assistant", _REPLY)
        self._typed = {"user": True, "assistant": True, "system": True, "tool": True}
        self._typed["user"] = self._typed["tool"] = self._takes_parts([question])
        self._typed["assistant"] = self._takes_parts([question, reply])
        self._typed["system"] = self._takes_parts([text_turn("system", _PROBE), question])
        bare, prompt = self.text([question], False), self.text([question], True)
        self.header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        self.ending = self._ending(prompt, self.text([question, reply], False))
        self._systems: dict[str, str] = {}

    def _takes_parts(self, turns: list[dict[str, Any]]) -> bool:
        """Whether the last turn's (or the leading system's) content may be a list of typed parts."""
        try:
            text = self.text(turns, False)
        except (TypeError, TemplateError):  # such templates add the content to a string
            return False
        wanted = _REPLY if turns[-1]["role"] == "assistant" else _PROBE
        return wanted in text and "'text'" not in text

    def text(self, turns: Sequence[Mapping[str, Any]], generation_prompt: bool) -> str:
        """The conversation as the template writes it."""
        messages = [
            turn if self._typed[turn["role"]] else {**turn, "content": _plain(turn["content"])}
            for turn in turns
        ]
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=generation_prompt
        )

    def _ending(self, prompt: str, whole: str) -> str:
        if re.search(r"<think>\s*\Z", prompt):
            raise RenderError(
                f"the chat template's generation prompt ends in {prompt[-30:]!r}: it opens the thought by itself, but "
                "answers are <think>..</think><answer>..</answer> as the model writes them; give a template without "
                "it as model.chat_template"
            )
        if not whole.startswith(prompt) or _REPLY not in whole[len(prompt) :]:
            raise RenderError(
                f"the chat template is not prefix-stable: {difference(prompt, whole)}; a prompt must be the beginning "
                "of the conversation that goes on; give another template as model.chat_template"
            )
        ending = whole[len(prompt) :].rpartition(_REPLY)[2]
        if not ending:
            raise RenderError(
                "the chat template writes nothing after an assistant turn, so a model could not learn to stop; give "
                "a template with an end-of-turn token as model.chat_template"
            )
        return ending

    def system(self, turn: Mapping[str, Any]) -> str:
        """What the template writes for a leading system turn alone; "" when it refuses to."""
        key = repr(turn["content"])
        if key not in self._systems:
            try:
                self._systems[key] = self.text([turn], False)
            except TemplateError:  # such templates insist on a user turn
                self._systems[key] = ""
        return self._systems[key]


def text_turn(role: RoleName, text: str) -> dict[str, Any]:
    """A turn of text alone, as templates take it."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _plain(content: Sequence[Mapping[str, Any]]) -> str:
    return "".join(part.get("text", "") for part in content)


def difference(expected: str, got: str) -> str:
    """Where two texts part, for a message."""
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    start = max(0, same - 20)
    return f"after {expected[start:same]!r} it was {expected[same : same + 40]!r} and is {got[same : same + 40]!r}"
