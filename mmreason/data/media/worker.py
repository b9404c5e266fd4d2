"""A process that decodes media for a run: it reads what is wanted from its standard input and writes back what it is.

It runs by itself and not under `multiprocessing`, which would import the user's script again. When the run is gone, its
standard input ends, and so does it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys

import torch

from mmreason.data.media import MediaError, decode


def serve() -> None:
    """Answer (limits, threads) with "ready", then each MediumRef with its DecodedMedium, or a text: its MediaError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes the input
    wanted, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a codec prints goes to the screen and not among the answers
    limits, threads = pickle.load(wanted)
    torch.set_num_threads(threads)
    answer: object = "ready"
    try:
        while True:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
            ref = pickle.load(wanted)
            try:
                answer = decode(ref, limits)
            except MediaError as error:
                answer = str(error)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        return  # the run is gone
