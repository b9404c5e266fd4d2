"""From rendered rows and scored groups to the per-token streams that the step multiplies and sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmreason.objective.aggregation import aggregation
from mmreason.render import with_completion
from mmreason.types import Group, Rendered, TrainingSample, Trajectory


def sft_sample(rendered: Rendered) -> TrainingSample:
    """Cross-entropy on the tokens that the assistant writes, each weighing 1.

    Example: sampled [0, 0, 1, 1] gives ce = aggregation = [0, 0, 1, 1] and count 2.
    """
    _check_first(rendered)
    weights, count = aggregation(rendered.sampled, "dapo", 0)
    zeros = torch.zeros_like(weights)
    return TrainingSample(
        rendered=rendered, aggregation=weights, count=count, ce=weights.clone(), rl=zeros, kl=zeros.clone()
    )


def grpo_samples(
    group: Group,
    advantages: Sequence[float],
    *,
    loss_type: str,
    beta: float,
    max_completion_length: int,
    mask_truncated: bool,
    group_id: int,
    keep_sampling: bool = False,
) -> list[TrainingSample]:
    """One training row per trajectory: prompt, completion, its advantage on every sampled token, beta for the KL.

    With `mask_truncated` (DAPO's overlong filtering) a completion that ran into the length limit teaches
    nothing, although its reward counted in the group's mean. Injected tokens (sampled 0) carry no weight.
    `keep_sampling` takes along what the completions were sampled with, for a correction in the step.
    """
    samples = []
    for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
        row = with_completion(group.prompt, trajectory.ids, trajectory.sampled)
        _check_first(row)
        dropped = mask_truncated and trajectory.finish == "length"
        learned = torch.zeros_like(row.sampled) if dropped else row.sampled
        weights, count = aggregation(learned, loss_type, max_completion_length)
        mask = learned.to(torch.float32)
        samples.append(
            TrainingSample(
                rendered=row,
                aggregation=weights,
                count=count,
                ce=torch.zeros_like(mask),
                rl=mask * advantage,
                kl=mask * beta,
                group=group_id,
                sampling_logprobs=_sampling(group, trajectory) if keep_sampling else None,
            )
        )
    return samples


def _sampling(group: Group, trajectory: Trajectory) -> torch.Tensor:
    """The sampling engine's log-probabilities, aligned with the row's ids; 0 on the prompt."""
    assert trajectory.logprobs is not None, (
        f"row {group.prompt.sample_id}: its engine gave no log-probabilities"
    )
    return torch.cat([torch.zeros(len(group.prompt)), trajectory.logprobs])


def _check_first(row: Rendered) -> None:
    """Nothing predicts the first token, so it cannot be learned."""
    assert not bool(row.sampled[:1].any()), f"row {row.sample_id}: its first token is marked as sampled"
