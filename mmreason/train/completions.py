"""What a run remembers of its rollouts: a record per completion, the step's group metrics, the completion files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmreason.evaluate.roots import by_root, read_roots
from mmreason.evaluate.rows import media_json, question_text, thinks
from mmreason.rewards import hedge
from mmreason.types import Group


def records(
    groups: Sequence[Group],
    step: int,
    labels: Mapping[str, str],
    advantages: Sequence[Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """One JSON-able record per completion; `group` numbers the groups of the list.

    `labels` names the rewards (`rewards.reward_labels`).
    """
    out = []
    for index, group in enumerate(groups):
        sample = group.sample
        for j, trajectory in enumerate(group.trajectories):
            out.append(
                {
                    "step": step,
                    "group": index,
                    "id": sample.id,
                    "prompt": question_text(sample),
                    "completion": trajectory.text,
                    "media": media_json(sample),
                    "evidence": [dict(e) for e in sample.evidence],
                    "options": list(sample.options),
                    "solution": sample.solution,
                    "problem_type": sample.problem_type,
                    "modality": sample.modality,
                    "difficulty": sample.difficulty,
                    "tokens": len(trajectory),
                    "finish": trajectory.finish,
                    "accuracy": trajectory.accuracy,
                    "rewards": {labels[name]: value for name, value in trajectory.rewards.items()},
                    "reward": trajectory.reward,
                    "advantage": None if advantages is None else advantages[index][j],
                    "think": thinks(trajectory.text),
                    "hedge": hedge(sample, trajectory.text),
                }
            )
    return out


def add_token_weights(
    lines: Sequence[dict[str, Any]],
    ids: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    decode: Callable[[list[int]], str],
) -> None:
    """Give each record its tokens, in place: `token_texts`, and `token_weights`, what each counted in the loss.

    `ids` and `weights` are of prompt and completion, [T] a record.
    """
    for line, row, weight in zip(lines, ids, weights, strict=True):
        start = len(row) - line["tokens"]
        line["token_texts"] = [decode([token]) for token in row[start:].tolist()]
        line["token_weights"] = [round(value, 4) for value in weight[start:].tolist()]


def write_completions(run_dir: Path, stage: str, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the records of one step to `completions/STAGE-STEP.jsonl`."""
    path = run_dir / "completions" / f"{stage}-{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    roots = read_roots(run_dir)
    named = [{**line, "media": by_root(line["media"], roots)} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in named))


def group_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """TRL's names over all completions that were rolled out in a step, dropped groups included."""
    if not lines:
        return {}
    lengths = [line["tokens"] for line in lines]
    ended = [line["tokens"] for line in lines if line["finish"] == "stop"]
    out = {
        "completions/mean_length": statistics.fmean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(line["finish"] == "length" for line in lines) / len(lines),
        "think_rate": statistics.fmean(bool(line["think"]) for line in lines),
    }
    if ended:
        out["completions/mean_terminated_length"] = statistics.fmean(ended)
    out |= _mean("accuracy", [line["accuracy"] for line in lines])
    out |= _mean("hedge_rate", [line["hedge"] for line in lines])
    out |= _mean("difficulty", [line["difficulty"] for line in lines])
    for name in sorted({name for line in lines for name in line["rewards"]}):
        known = [line["rewards"].get(name) for line in lines]
        out |= _mean(f"rewards/{name}/mean", known)
        out |= _spread(f"rewards/{name}/std", known)
    out |= _mean("reward", [line["reward"] for line in lines])
    return out | _group_spread(lines)


def _group_spread(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    groups: dict[tuple[Any, Any], list[float]] = {}
    for line in lines:
        if line["reward"] is not None:
            groups.setdefault((line["group"], line["id"]), []).append(line["reward"])
    spreads = [statistics.stdev(values) for values in groups.values() if len(values) > 1]
    if not spreads:
        return {}
    zero = sum(spread < 1e-6 for spread in spreads) / len(spreads)
    return {"reward_std": statistics.fmean(spreads), "frac_reward_zero_std": zero}


def _mean(name: str, values: Sequence[float | None]) -> dict[str, float]:
    known = [float(v) for v in values if v is not None]
    return {name: statistics.fmean(known)} if known else {}


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float]:
    known = [float(v) for v in values if v is not None]
    return {name: statistics.stdev(known)} if len(known) > 1 else {}
