"""Media decoded ahead in worker processes, while the run trains. What is decoded does not depend on who does it, when.

A file that ends the process that reads it (some do: a codec is no Python) is tried once more in a fresh process, since
a process may also be killed from outside; after that it is a MediaError like any other, and is not tried again. A file
that takes longer than `max_decode_seconds` is one at once: its process is killed, and the next file gets a fresh one.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Any

import torch

from mmreason.data.media.limits import MediaError, MediaLimits
from mmreason.data.media.patience import too_slow
from mmreason.types import DecodedMedium, MediumRef

BOOT = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from mmreason.data.media.worker import serve; serve()"
)
AHEAD_BYTES = 256 * 2**20  # of decoded media that wait to be used, by the largest one seen
TRIES = 2
FAREWELL = 5.0  # seconds for a killed process to go; one that waits for a dead disk stays, and is left


@dataclass(frozen=True)
class _Crash:
    """Why a file ended the process that read it, or had it ended."""

    reason: str


class Decoders:
    """`workers` processes, started when they are first needed, that decode media in the order in which they are wanted.

    Example: `d = Decoders(2, limits); d.ahead(refs); d.decode(refs[0])` is `decode(refs[0], limits)`, made elsewhere.
    """

    def __init__(self, workers: int, limits: MediaLimits) -> None:
        self._workers = [_Worker(limits) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="media")  # each waits for one process
        self._begun: dict[MediumRef, Future[DecodedMedium | str | _Crash]] = {}
        self._wanted: deque[MediumRef] = deque()
        self._crashed: dict[MediumRef, str] = {}
        self._largest = 0
        self._end = weakref.finalize(self, _close, self._threads, self._workers)

    def ahead(self, refs: Sequence[MediumRef]) -> None:
        """What will be asked for next, in this order; what was begun for another order and not asked for is let go."""
        kept = set(refs)
        for ref in [ref for ref in self._begun if ref not in kept]:
            self._begun.pop(ref).cancel()
        self._wanted = deque(refs)
        self._begin()

    def decode(self, ref: MediumRef) -> DecodedMedium:
        """The medium, decoded by now or waited for.

        Raises:
            MediaError: as `decode`; also when the file ends every process that reads it, or takes too long.
        """
        if ref in self._crashed:
            raise MediaError(self._crashed[ref])
        answer = (self._begun.pop(ref, None) or self._submit(ref)).result()
        if isinstance(answer, _Crash):
            self._crashed[ref] = answer.reason
            raise MediaError(answer.reason)
        if isinstance(answer, str):
            raise MediaError(answer)
        self._largest = max(self._largest, _size(answer))
        self._begin()
        return answer

    def close(self) -> None:
        """End the processes."""
        self._end()

    def _begin(self) -> None:
        """Begin the next wanted media, as far as there is room for them."""
        room = max(2 * len(self._workers), AHEAD_BYTES // self._largest if self._largest else 0)
        while self._wanted and len(self._begun) < room:
            ref = self._wanted.popleft()
            if ref not in self._begun and ref not in self._crashed:
                self._begun[ref] = self._submit(ref)

    def _submit(self, ref: MediumRef) -> Future[DecodedMedium | str | _Crash]:
        return self._threads.submit(_by_any, self._idle, ref)


def _by_any(idle: SimpleQueue[_Worker], ref: MediumRef) -> DecodedMedium | str | _Crash:
    """The answer of a worker that has nothing to do; there are as many as threads."""
    worker = idle.get()
    try:
        return worker.decode(ref)
    finally:
        idle.put(worker)


class _Worker:
    """One process, and the next one after it has ended."""

    def __init__(self, limits: MediaLimits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def decode(self, ref: MediumRef) -> DecodedMedium | str | _Crash:
        """The process's answer, or what ended it."""
        ends = "the run ends"
        for _ in range(TRIES):
            if self._closed:
                break
            process = self._running()
            try:
                return _asked(process, ref, self._limits.max_decode_seconds)
            except TimeoutError:
                self._process = None
                _kill(process)
                return _Crash(too_slow(ref, self._limits))
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                ends = _status(process)
                self._process = None
        return _Crash(
            f"{ref.path or 'inline bytes'}: the process that decoded it ended ({ends}); a file like this may bring "
            "any player down: write it anew, or remove its row"
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            process = subprocess.Popen(
                [sys.executable, "-c", BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                _say(process, sys.path)
                _asked(
                    process, (self._limits, torch.get_num_threads()), None
                )  # as many as here: the same bits
            except (EOFError, BrokenPipeError) as error:
                raise RuntimeError(
                    f"a media worker ended before it began ({_status(process)}); its error stands above. "
                    "dataloader_num_workers: 0 decodes in the run's own process"
                ) from error
            self._process = process
        return self._process

    def close(self) -> None:
        """Kill the process, whatever it does."""
        self._closed = True
        if self._process is not None:
            _kill(self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(FAREWELL)


def _say(process: subprocess.Popen[bytes], value: Any) -> None:
    assert process.stdin is not None
    pickle.dump(value, process.stdin, protocol=5)
    process.stdin.flush()


def _asked(process: subprocess.Popen[bytes], value: Any, seconds: float | None) -> Any:
    """The answer to `value`; TimeoutError when it has not begun after `seconds`."""
    assert process.stdout is not None
    _say(process, value)
    if not wait([process.stdout.fileno()], seconds):  # nothing of an earlier answer is left in its buffer
        raise TimeoutError
    return pickle.load(process.stdout)


def _status(process: subprocess.Popen[bytes]) -> str:
    """How a process ended: `SIGSEGV`, or `status 1`."""
    code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"status {code}"


def _size(medium: DecodedMedium) -> int:
    """Bytes of a decoded medium."""
    if medium.image is not None:
        return medium.image.width * medium.image.height * len(medium.image.getbands())
    return sum(part.nbytes for part in (medium.frames, medium.waveform) if part is not None)


def _close(threads: ThreadPoolExecutor, workers: Sequence[_Worker]) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.close()
