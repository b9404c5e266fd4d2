"""1 rank x 4 micro-batches == 2 ranks x 2 == 1 x 1, with real processes; and the factor that Adam would hide."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import tiny_assembled

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6  # measured: 1e-7 and below, fp32, SGD with momentum


def train_in_processes(
    model_dir: Path, out: Path, kind: str, ranks: int, max_tokens: int
) -> dict[str, torch.Tensor]:
    """Run the worker on `ranks` processes and return the parameters after three steps."""
    worker = [str(ROOT / "tests/train/worker.py"), str(model_dir), str(out), kind, str(max_tokens)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *worker]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
        command += ["--master_addr=127.0.0.1", f"--master_port={port}", *worker]
    paths = os.pathsep.join(str(ROOT / p) for p in (".", "encoders", "tools"))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=env, timeout=120, capture_output=True)
    return load_file(out)


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_one_denominator_over_micro_batches_and_ranks(kind: str, tmp_path: Path) -> None:
    model_dir = tiny_assembled(tmp_path / "model")
    whole = train_in_processes(model_dir, tmp_path / "a", kind, ranks=1, max_tokens=100_000)
    split = train_in_processes(model_dir, tmp_path / "b", kind, ranks=1, max_tokens=1)
    ranks = train_in_processes(model_dir, tmp_path / "c", kind, ranks=2, max_tokens=1)
    start = load_file(next(model_dir.glob("*.safetensors")))
    moved = max(float((whole[k] - start[k]).abs().max()) for k in whole if k in start)
    assert moved > 1e-3  # the steps did something, so equality means something
    for other in (split, ranks):
        assert max(float((whole[k] - other[k]).abs().max()) for k in whole) <= TOLERANCE
