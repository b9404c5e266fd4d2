"""Text that ends a completion: where a row first holds one of the stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """Finds the token that completes a stop string; that token stays in the completion, what follows is cut.

    A string may lie across tokens, or end inside one. Only the last tokens of a row are decoded, and only behind a
    token in whose own text a stop string can end.

    Example: `StopStrings(["</answer>"], renderer.decode).end([40, 41, 42])` is None, or how many tokens the row keeps.
    """

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self.strings, self.decode = tuple(strings), decode
        # How many tokens are looked at: each is a byte of text or more, and some tokenizers drop a leading blank.
        self.tail = max((len(s.encode()) for s in self.strings), default=0) + 1
        self._finishing: dict[int, bool] = {}

    def end(self, ids: Sequence[int], start: int = 0) -> int | None:
        """How many tokens stand up to the end of the first stop string; None without any.

        The first `start` tokens are known to hold none.
        """
        for place in range(start, len(ids) if self.strings else start):
            if self._may_finish(ids[place]):
                text = self.decode(list(ids[max(0, place + 1 - self.tail) : place + 1]))
                if any(s in text for s in self.strings):
                    return place + 1
        return None

    def _may_finish(self, token: int) -> bool:
        """Whether a stop string can end in this token's text (which may be part of a letter: then it can)."""
        if token not in self._finishing:
            text = self.decode([token])
            texts = (text, " " + text)  # a blank before it is lost in some tokenizers' decoding of one token
            self._finishing[token] = "\ufffd" in text or any(
                s in t or any(t.startswith(s[i:]) for i in range(len(s))) for s in self.strings for t in texts
            )
        return self._finishing[token]
