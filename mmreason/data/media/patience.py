"""Media decoded in the run's own process, and no longer than `max_decode_seconds`."""

from __future__ import annotations

import threading
import weakref
from queue import Empty, SimpleQueue
from typing import Any

from mmreason.data.media import decode
from mmreason.data.media.limits import MediaError, MediaLimits
from mmreason.types import DecodedMedium, MediumRef

THREAD = "decodes media here"


class Here:
    """Decodes in a thread beside. One that hangs is left behind, since nothing can end it here, and replaced.

    A worker process is killed instead (`ahead.Decoders`). A decoder that never lets other threads run, which none of
    ours is, would stop the run all the same.

    Example: `Here(limits).decode(ref)` is `decode(ref, limits)`.
    """

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._helper: _Helper | None = None
        self._hung: set[MediumRef] = set()

    def decode(self, ref: MediumRef) -> DecodedMedium:
        """The medium; one that took too long is not tried again.

        Raises:
            MediaError: as `decode`; also when it takes too long.
        """
        if ref in self._hung:
            raise MediaError(too_slow(ref, self._limits))
        helper, self._helper = self._helper or _Helper(self._limits), None
        helper.wanted.put(ref)
        try:
            answer = helper.answers.get(timeout=self._limits.max_decode_seconds)
        except Empty:
            self._hung.add(ref)
            raise MediaError(too_slow(ref, self._limits)) from None
        self._helper = helper
        if isinstance(answer, BaseException):
            raise answer
        return answer


class _Helper:
    """A thread that decodes what is wanted; it ends with this object, or with what it is decoding then."""

    def __init__(self, limits: MediaLimits) -> None:
        self.wanted: SimpleQueue[MediumRef | None] = SimpleQueue()
        self.answers: SimpleQueue[Any] = SimpleQueue()
        given = (self.wanted, self.answers, limits)
        threading.Thread(target=_serve, args=given, name=THREAD, daemon=True).start()
        weakref.finalize(self, self.wanted.put, None)


def _serve(wanted: SimpleQueue[MediumRef | None], answers: SimpleQueue[Any], limits: MediaLimits) -> None:
    """Answer each medium, or what was raised instead."""
    while (ref := wanted.get()) is not None:
        try:
            answers.put(decode(ref, limits))
        except BaseException as error:  # raised again where it was wanted
            answers.put(error)


def too_slow(ref: MediumRef, limits: MediaLimits) -> str:
    """What is said of a medium that takes too long."""
    return (
        f"{ref.path or 'inline bytes'}: not decoded after {limits.max_decode_seconds:g} s (max_decode_seconds): make "
        "it smaller or write it anew, remove its row, or raise the bound"
    )
