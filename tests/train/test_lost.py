"""A rank that stops, or comes too late, is told with what to do; other errors keep their words."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmreason.train.distributed import lost_ranks_named

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"), [("stops", "gloo/transport"), ("is late", "Timed out waiting 4000ms")]
)
def test_the_other_rank_is_told_what_to_do(how: str, said: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.train.lost"]
    second = subprocess.Popen([*command, "1", port, how], cwd=ROOT)
    first = subprocess.run([*command, "0", port, how], cwd=ROOT, capture_output=True, text=True, timeout=120)
    second.wait(60)
    assert first.stdout.startswith("rank 0 has lost the others: one of them has stopped")
    assert "ddp_timeout" in first.stdout and said in first.stdout


ABORT = """
import os

def abort(completions, **columns):
    if os.environ["RANK"] == "1":
        os.abort()
    return [0.0] * len(completions)
"""


@pytest.mark.slow
def test_a_rank_that_a_signal_ends_is_explained(tmp_path: Path) -> None:
    """As NCCL's watchdog ends one that waits in vain."""
    (tmp_path / "abort.py").write_text(ABORT)
    keys = ["data.warm.count=16", "data.base.count=16", "data.prompts.count=16", "stages.sft.max_steps=1"]
    keys += [f"stages.grpo.reward_funcs=[{tmp_path}/abort.py:abort]", "stages.grpo.reward_weights=[1.0]"]
    command = [sys.executable, "-m", "mmreason.cli", "launch", "recipes/debug.yaml", "--nproc", "2", *keys]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert "mmreason: a process was ended by signal 6." in done.stderr and "raise ddp_timeout" in done.stderr


def test_other_errors_keep_their_words() -> None:
    with pytest.raises(RuntimeError, match="^size mismatch$"), lost_ranks_named():
        raise RuntimeError("size mismatch")
    with pytest.raises(
        ConnectionError, match="rank 0 has lost the others(?s:.)*ddp_timeout(?s:.)*NCCL error in x"
    ):
        with lost_ranks_named():
            raise RuntimeError("NCCL error in x\nmore")
