"""How a GRPO step grows with the number of processes, on paper: a few sums, fed with a machine's constants.

`python -m mmreason.bench.scaling` prints the table of docs/scale.md. A step is a rollout, which ends with the longest
completion of all processes; then training, which ends with the process that has most tokens; then the exchange of
gradients. Each process keeps its work (weak scaling). Left out: attention's own products, the encoders, evaluation,
reading media, checkpoints, and that an exchange may hide behind the backward pass.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mmreason.bench.constants import constants_here

DRAWS = 200  # steps that the mean is taken of


@dataclass(frozen=True)
class Machine:
    """What one process reaches, and what joins it to the others.

    Example: `Machine(4e14, 2e12, 3.6e11, 4e10, 8, 2e-5)`.
    """

    flops: float  # a second, in training and prefill
    reads: float  # bytes a second, in decoding
    near: float  # bytes a second from one process to another of its node
    far: float  # and of another node
    per_node: int
    latency: float  # seconds of one message


@dataclass(frozen=True)
class Work:
    """What one process does in a step.

    Example: `Work(7.6e9, 4e7, 2, 2176, (64, 512), 4, 8, 57344, 4, True)`.
    """

    weights: float  # of the LLM, numbers
    learning: float  # of them, or of adapters, that learn
    width: int  # bytes of a number
    prompt: int  # tokens
    lengths: tuple[int, int]  # the shortest and the longest completion; those between are as likely
    groups: int
    group: int  # completions of a prompt, which is computed once for all
    kv_bytes: int  # of one token's keys and values
    micro_batches: int
    recomputed: bool  # activations, in the backward pass


@dataclass(frozen=True)
class Step:
    """Mean seconds of a step's parts, and the completions' tokens of all processes a second.

    `efficiency` is against as many single processes. Example: `Step(8, 4.1, 2.0, 0.3, 9000.0, 0.93)`.
    """

    processes: int
    rollout_s: float
    training_s: float
    exchange_s: float
    tokens_a_second: float
    efficiency: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.rollout_s + self.training_s + self.exchange_s


# NVIDIA's data sheet of an H100 SXM (989 TFLOP/s bfloat16 without sparsity, 3.35 TB/s, NVLink 450 GB/s each way) and
# one 400 Gbit/s adapter for each GPU; that 40%, 60%, 80% and 80% of these are reached, and the latency, are assumed.
H100 = Machine(0.4 * 989e12, 0.6 * 3.35e12, 0.8 * 450e9, 0.8 * 50e9, 8, 2e-5)
# Qwen2.5-7B: 28 layers with 4 key/value heads of 128. LoRA of rank 16 on every linear layer has about 40 million.
LORA = Work(7.6e9, 4e7, 2, 16 * 128 + 128, (64, 512), 4, 8, 28 * 2 * 4 * 128 * 2, 4, True)
WHOLE = replace(LORA, learning=7.6e9)
CASES = {"7B, LoRA": (LORA, False), "7B, zero2": (WHOLE, False), "7B, zero3": (WHOLE, True)}


def prefill_s(work: Work, machine: Machine) -> float:
    """Each prompt once, two operations for each weight and token."""
    return 2 * work.weights * work.prompt * work.groups / machine.flops


def decode_s(work: Work, machine: Machine, lengths: torch.Tensor) -> torch.Tensor:
    """Until the longest of rows of `lengths` (int [..., R]) ends: a token reads weights, prompts' keys, rows' keys."""
    fixed = work.weights * work.width + work.groups * work.prompt * work.kv_bytes
    behind = (lengths * (lengths - 1)).sum(-1) / 2  # tokens that stand behind a row's token, summed up
    return (fixed * lengths.amax(-1) + work.kv_bytes * behind) / machine.reads


def training_s(work: Work, machine: Machine, tokens: float) -> float:
    """Forward pass, gradients of activations, again the forward pass where recomputed: 2 a weight; of what learns 2."""
    passes = 3 if work.recomputed else 2
    return 2 * (passes * work.weights + work.learning) * tokens / machine.flops


def ring_s(size: float, processes: int, machine: Machine) -> float:
    """One way round a ring, `size` bytes in as many parts as processes: a gather, or a scatter of sums."""
    slowest = machine.near if processes <= machine.per_node else machine.far
    rounds = processes - 1
    return rounds * (size / processes / slowest + machine.latency)


def exchange_s(work: Work, machine: Machine, processes: int, *, zero3: bool) -> float:
    """As ZeRO-2 does: gradients summed up in every micro-batch, new weights handed round once. Under ZeRO-3 weights are
    gathered twice in every micro-batch and once for the rollout.
    """
    gradients = ring_s(work.learning * work.width, processes, machine)
    if not zero3:
        return (work.micro_batches + 1) * gradients
    weights = ring_s(work.weights * work.width, processes, machine)
    return work.micro_batches * gradients + (2 * work.micro_batches + 1) * weights


def simulate(work: Work, machine: Machine, processes: int, *, zero3: bool = False, seed: int = 0) -> Step:
    """The mean of DRAWS steps whose completions' lengths are drawn; every process waits for the slowest."""
    generator = torch.Generator().manual_seed(seed)
    rows = work.groups * work.group
    rollout = training = tokens = 0.0
    for _ in range(DRAWS):
        low, high = work.lengths
        lengths = torch.randint(low, high + 1, (processes, rows), generator=generator)
        written = lengths.sum(1)
        rollout += prefill_s(work, machine) + float(decode_s(work, machine, lengths).max())
        training += training_s(work, machine, work.groups * work.prompt + float(written.max()))
        tokens += float(written.sum())
    exchange = exchange_s(work, machine, processes, zero3=zero3)
    rollout, training, tokens = rollout / DRAWS, training / DRAWS, tokens / DRAWS
    return Step(processes, rollout, training, exchange, tokens / (rollout + training + exchange), 1.0)


def growth(work: Work, machine: Machine, counts: Sequence[int], *, zero3: bool = False) -> list[Step]:
    """Steps of so many processes, with their efficiency."""
    alone = simulate(work, machine, 1, zero3=zero3).tokens_a_second
    steps = [simulate(work, machine, n, zero3=zero3) for n in counts]
    return [replace(s, efficiency=s.tokens_a_second / (s.processes * alone)) for s in steps]


def main(given: Sequence[str] | None = None) -> None:
    """Print how the step of a 7B model grows on H100s; with --here, this machine's constants."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--machine", type=Path, help="a JSON file with the fields of Machine; default: H100")
    parser.add_argument("--here", action="store_true", help="measure this machine's constants and print them")
    args = parser.parse_args(given)
    if args.here:
        print(json.dumps(constants_here()))
        return
    machine = H100 if args.machine is None else Machine(**json.loads(args.machine.read_text()))
    print(json.dumps(asdict(machine)))
    print(
        "| case | processes | rollout s | training s | exchange s | completions' tokens a second | efficiency |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (work, zero3) in CASES.items():
        for step in growth(work, machine, args.counts, zero3=zero3):
            print(
                f"| {name} | {step.processes} | {step.rollout_s:.2f} | {step.training_s:.2f} | {step.exchange_s:.2f} "
                f"| {step.tokens_a_second:,.0f} | {step.efficiency:.2f} |"
            )


if __name__ == "__main__":
    main()
