"""Muon for matrices and AdamW for the rest: the same steps as the two by themselves, through a resume as well."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.schema import SFTStage
from mmreason.train.deepspeed_config import deepspeed_problems
from mmreason.train.optim import make_optimizer
from mmreason.train.run import train
from tests.train import small
from tests.train.killed import killed

RATE, SCALE, BETAS = 1e-2, 4.0, (0.9, 0.98)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.wide, self.head = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 1, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.wide(self.words(ids)))).square().sum()
        return out


def groups(net: Net) -> list[dict[str, Any]]:
    return [
        {"name": "llm", "params": [net.wide.weight, net.head.weight], "lr": RATE, "weight_decay": 0.1},
        {
            "name": "llm/no_decay",
            "params": [net.words.weight, net.wide.bias],
            "lr": RATE,
            "weight_decay": 0.0,
        },
    ]


def step(net: Net, *optimizers: torch.optim.Optimizer) -> None:
    net.zero_grad(set_to_none=True)
    net(torch.tensor([0, 3, 1])).backward()
    for optimizer in optimizers:
        optimizer.step()


def stage(**keys: Any) -> SFTStage:
    return SFTStage(type="sft", name="s", data=[], optimizer="muon", learning_rate=RATE, **keys)


def made(net: Net) -> torch.optim.Optimizer:
    return make_optimizer(groups(net), stage(muon_lr_scale=SCALE, adam_beta2=BETAS[1]))


def test_it_steps_as_the_two_by_themselves() -> None:
    torch.manual_seed(0)
    net = Net()
    twin = copy.deepcopy(net)
    ours = made(net)
    muon = torch.optim.Muon(
        [twin.wide.weight], lr=RATE * SCALE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [
            {"params": [twin.head.weight], "weight_decay": 0.1},  # a row is no matrix
            {"params": [twin.words.weight, twin.wide.bias], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=BETAS,
        fused=True,
    )
    for _ in range(4):
        step(net, ours)
        step(twin, muon, adam)
    for (name, mine), (_, theirs) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_rate_set_on_the_groups_reaches_both_also_after_loading() -> None:
    torch.manual_seed(0)
    net = Net()
    first = made(net)
    step(net, first)
    second = made(net)
    second.load_state_dict(first.state_dict())
    for group in second.param_groups:
        assert group["initial_lr"] == pytest.approx(
            RATE * (SCALE if len(group["params"]) == 1 and group["params"][0] is net.wide.weight else 1)
        )
        group["lr"], group["weight_decay"] = 0.0, 0.0
    before = [p.clone() for p in net.parameters()]
    step(net, second)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_a_state_of_another_optimizer_is_refused_by_name() -> None:
    net = Net()
    with pytest.raises(ValueError, match=r"optimizer: muon wants \['matrices', 'rest'\]"):
        made(net).load_state_dict(torch.optim.AdamW(net.parameters()).state_dict())


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.without_probe(monkeypatch)
    stages = [small.SFT | {"optimizer": "muon", "muon_lr_scale": 2.0, "max_steps": 4, "save_steps": 2}]
    trees = {
        name: small.recipe(tmp_path / name, stages=stages, eval={"data": []}) for name in ("whole", "cut")
    }
    train(trees["whole"])
    killed(trees["cut"].model_dump(), step=3)
    train(trees["cut"])
    whole, cut = (small.weights(tmp_path / name / "model") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_deepspeed_refuses_it_by_name(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path, stages=[small.SFT | {"optimizer": "muon"}], deepspeed="zero2")
    assert any("muon needs whole matrices" in problem for problem in deepspeed_problems(recipe))
