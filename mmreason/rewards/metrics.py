"""What the groups of one step earned, under TRL's metric names."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mmreason.rewards.answer import think_body
from mmreason.rewards.soft import hedge
from mmreason.types import Group


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """reward, reward_std (mean of the groups' own), frac_reward_zero_std, rewards/NAME/mean and /std, accuracy,
    think_rate, hedge_rate. A metric that no trajectory has a value for is left out.
    """
    trajectories = [(group.sample, t) for group in groups for t in group.trajectories]
    out: dict[str, float] = {}
    known = [[t.reward for t in group.trajectories if t.reward is not None] for group in groups]
    stds = [statistics.stdev(rewards) if len(rewards) > 1 else 0.0 for rewards in known]
    rewards = [value for group in known for value in group]
    if rewards:
        out["reward"] = statistics.fmean(rewards)
        out["reward_std"] = statistics.fmean(stds)
        out["frac_reward_zero_std"] = statistics.fmean(float(std < 1e-8) for std in stds)
    for name in dict.fromkeys(name for _, t in trajectories for name in t.rewards):
        values = [v for _, t in trajectories if (v := t.rewards.get(name)) is not None]
        if values:
            out[f"rewards/{name}/mean"] = statistics.fmean(values)
            out[f"rewards/{name}/std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    accuracies = [t.accuracy for _, t in trajectories if t.accuracy is not None]
    if accuracies:
        out["accuracy"] = statistics.fmean(accuracies)
    if trajectories:
        out["think_rate"] = statistics.fmean(
            bool((think_body(t.text) or "").strip()) for _, t in trajectories
        )
    hedges = [h for sample, t in trajectories if (h := hedge(sample, t.text)) is not None]
    if hedges:
        out["hedge_rate"] = statistics.fmean(hedges)
    return out
