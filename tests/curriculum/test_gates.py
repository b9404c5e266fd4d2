"""The balanced gate: its band, its counts, and that only accuracy decides."""

from __future__ import annotations

import json

import pytest

from mmreason.curriculum import gate_problem, make_gate
from mmreason.schema import GateConfig
from mmreason.types import Group
from tests.rewards.build import group, sample, trajectory


def of_accuracy(right: int, wrong: int, reward: float = 0.0) -> Group:
    known = [1.0] * right + [0.0] * wrong
    return group(sample("1"), [trajectory(accuracy=a, reward=reward) for a in known])


def balanced(low: float = 0.25, high: float = 0.75) -> GateConfig:
    return GateConfig(name="balanced", low=low, high=high)


def test_the_band_includes_its_ends():
    gate = make_gate(balanced())
    groups = [of_accuracy(k, 8 - k) for k in range(9)]
    assert [gate.admit(g) for g in groups] == [False] * 2 + [True] * 5 + [False] * 2
    gate.observe(groups)
    assert gate.metrics() == {
        "curriculum/admitted": 5,
        "curriculum/dropped_easy": 2,
        "curriculum/dropped_hard": 2,
        "curriculum/unverified": 0,
        "curriculum/dropped": 4,
        "curriculum/admit_rate": 5 / 9,
    }


def test_a_third_is_a_third():
    assert make_gate(balanced(1 / 3, 2 / 3)).admit(of_accuracy(2, 4))
    assert make_gate(balanced(0.1, 0.3)).admit(of_accuracy(3, 7))  # 0.3 is not the float 3/10


def test_shaped_reward_does_not_decide():
    gate = make_gate(balanced())
    assert not gate.admit(of_accuracy(8, 0, reward=0.5))
    assert gate.admit(of_accuracy(4, 4, reward=9.0))


def test_an_unverified_group_passes_and_is_counted():
    gate = make_gate(balanced())
    unknown = group(sample(None), ["a", "b"])
    assert gate.admit(unknown)
    gate.observe([unknown])
    assert gate.metrics()["curriculum/unverified"] == 1


def test_the_open_gate_admits_all():
    gate = make_gate(GateConfig())
    assert all(gate.admit(of_accuracy(k, 4 - k)) for k in range(5))
    assert gate.metrics()["curriculum/admit_rate"] == 1.0


def test_counts_survive_a_checkpoint():
    gate = make_gate(balanced())
    gate.observe([of_accuracy(0, 4)])
    later = make_gate(balanced())
    later.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    later.observe([of_accuracy(2, 2)])
    assert later.metrics()["curriculum/dropped_hard"] == later.metrics()["curriculum/admitted"] == 1


def test_every_ranks_groups_are_counted_by_every_rank():
    """Two ranks judge a group each and observe both: their counts are equal, and those of the whole step."""
    groups = [of_accuracy(0, 4), of_accuracy(2, 2)]
    ranks = [make_gate(balanced()) for _ in groups]
    for gate, mine in zip(ranks, groups, strict=True):
        gate.admit(mine)
        gate.observe(groups)
    assert ranks[0].metrics() == ranks[1].metrics()
    assert ranks[0].metrics()["curriculum/admit_rate"] == 0.5


def test_a_band_that_nothing_can_reach_is_named():
    assert gate_problem(balanced(0.6, 0.7), 2) is not None
    assert gate_problem(balanced(0.6, 0.7), 3) is None
    assert gate_problem(GateConfig(), 2) is None
    with pytest.raises(ValueError, match="exchange"):
        make_gate(balanced(0.8, 0.2))
