"""The real step's loss on a bigram model, against plain Python arithmetic token by token, and mutants of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.data.loader import collate
from mmreason.model.family import Family
from mmreason.objective import GroupWeights, grpo_samples, sft_sample, token_weights_tw, tw_grpo
from mmreason.train import step
from mmreason.train.scoring import Micro
from mmreason.types import TrainingSample
from tests.rewards.build import group, sample, trajectory

VOCABULARY, BANNED, TEMPERATURE = 9, 8, 0.7
FAMILY = Family("native", (), {}, (BANNED,), {}, token_types=False)
BACKEND: dict[str, Any] = {"device": torch.device("cpu"), "gathers": False}
OBJECTIVE = step.Objective(banned=(BANNED,), temperature=TEMPERATURE, epsilon=0.2, epsilon_high=0.28)


class Table(nn.Module):
    """The bigram's head: what it is given says which token is the present one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(
            torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
        )

    def forward(self, present: torch.Tensor) -> torch.Tensor:
        return present @ self.table


class Bigram(nn.Module):
    """Logits of the next token from the present one alone, so that a row's numbers can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Table()

    @property
    def table(self) -> nn.Parameter:
        return self.head.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> Any:
        return SimpleNamespace(config=SimpleNamespace())

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **ignored: Any) -> Any:
        present = nn.functional.one_hot(input_ids, VOCABULARY).float()
        return SimpleNamespace(logits=self.head(present[:, -logits_to_keep:]))


@pytest.fixture(params=["by the head", "by logits"], autouse=True)
def gathers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is scored by its head; where weights are gathered as modules run, by its own logits."""
    monkeypatch.setitem(BACKEND, "gathers", request.param == "by logits")


def rows(loss_type: str = "dapo") -> list[TrainingSample]:
    """A group of three ragged completions with old and reference values, and one SFT row beside it."""
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randint(0, BANNED, (n,), generator=generator) for n in (2, 4, 3)]
    made = group(sample("1"), [replace(trajectory(length=len(ids)), ids=ids) for ids in drawn])
    built = grpo_samples(
        made,
        [1.0, -0.5, 0.25],
        loss_type=loss_type,
        beta=0.3,
        max_completion_length=6,
        mask_truncated=False,
        group_id=0,
    )
    noise = torch.Generator().manual_seed(2)
    built = [
        replace(
            row,
            old_logprobs=-2 + torch.rand(len(row), generator=noise),
            ref_logprobs=-2 + torch.rand(len(row), generator=noise),
        )
        for row in built
    ]
    return [*built, sft_sample(built[1].rendered)]


def micro(model: nn.Module, given: list[TrainingSample], objective: step.Objective = OBJECTIVE) -> Any:
    trainer: Any = SimpleNamespace(
        wrapped=model, model=model, family=FAMILY, backend=SimpleNamespace(**BACKEND), bf16=False
    )
    return step.micro_loss(trainer, Micro(collate(given, 0), None), objective)


def by_hand(
    model: Bigram,
    given: list[TrainingSample],
    weight: Callable[[int, int], float] = lambda row, token: 1.0,
    weigh_kl: bool = False,
    temperature: float = TEMPERATURE,
    clip: bool = True,
) -> float:
    """The sum over learned tokens, one scalar at a time; the switches are the mistakes a step could make."""
    total = 0.0
    for i, row in enumerate(given):
        ids = row.rendered.ids.tolist()
        for t in range(1, len(ids)):
            learned = float(row.aggregation[t])
            if not learned:
                continue
            scores = [x / temperature for x in model.table[ids[t - 1]].tolist()]
            kept = [s for v, s in enumerate(scores) if v != BANNED]
            logp = scores[ids[t]] - math.log(sum(map(math.exp, kept)))
            w, advantage = weight(i, t), float(row.rl[t])
            loss = -float(row.ce[t]) * logp
            if row.old_logprobs is not None and row.ref_logprobs is not None:
                ratio = math.exp(logp - float(row.old_logprobs[t]))
                bounded = min(max(ratio, 0.8), 1.28) if clip else ratio
                loss -= w * min(ratio * advantage, bounded * advantage)
                d = float(row.ref_logprobs[t]) - logp
                loss += (w if weigh_kl else 1.0) * float(row.kl[t]) * (math.exp(d) - d - 1)
            total += learned * loss
    return total


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_the_steps_loss_is_the_loss_by_hand(loss_type: str):
    model, given = Bigram(), rows(loss_type)
    loss, parts = micro(model, given)
    assert loss.item() == pytest.approx(by_hand(model, given), rel=1e-5)
    assert parts["tokens"] == 2 + 4 + 3 + 4
    assert loss.item() != pytest.approx(by_hand(model, given, temperature=1.0), rel=1e-3)
    assert loss.item() != pytest.approx(by_hand(model, given, clip=False), rel=1e-3)


def test_a_prompt_token_that_slipped_into_the_mask_changes_the_loss():
    model, given = Bigram(), rows()
    ones = torch.tensor([0.0, *[1.0] * (len(given[3]) - 1)])
    slipped = [*given[:3], replace(given[3], ce=ones, aggregation=ones)]
    loss, parts = micro(model, slipped)
    assert loss.item() == pytest.approx(by_hand(model, slipped), rel=1e-5)
    assert loss.item() != pytest.approx(by_hand(model, given), rel=1e-3) and parts["tokens"] == 14


def test_token_weights_act_on_the_policy_term_alone():
    model, given = Bigram(), rows()
    weights = partial(token_weights_tw, alpha_max=1.7)
    loss, parts = micro(model, given, replace(OBJECTIVE, token_weights=tw_grpo(1.7)))
    sizes = [len(row) - 2 for row in given[:3]]
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    padded = torch.zeros(3, max(sizes), dtype=torch.long)
    for i, row in enumerate(given[:3]):
        padded[i, : sizes[i]] = row.rendered.ids[1:-1]  # the ids that predict the completion's tokens
    table = weights(model.table.detach()[padded], mask)
    assert table.max() > 1.5

    def weight(row: int, token: int) -> float:
        return 1.0 if row == 3 else float(table[row, token - 2])

    assert loss.item() == pytest.approx(by_hand(model, given, weight), rel=1e-5)
    assert loss.item() != pytest.approx(by_hand(model, given, weight, weigh_kl=True), rel=1e-4)
    assert loss.item() != pytest.approx(by_hand(model, given), rel=1e-4)


def test_the_gradient_treats_token_weights_as_numbers():
    model, given = Bigram(), rows()
    weights = tw_grpo(1.7)
    micro(model, given, replace(OBJECTIVE, token_weights=weights))[0].backward()
    assert model.table.grad is not None
    fixed = Bigram()
    frozen: list[torch.Tensor] = []

    def remembered(divergence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        frozen.append(weights.weights(divergence, mask))
        return frozen[0]

    micro(fixed, given, replace(OBJECTIVE, token_weights=replace(weights, weights=remembered)))
    numbers = GroupWeights(
        lambda logits, mask: logits.new_zeros(mask.shape[1]), lambda d, mask: frozen[0].clone()
    )
    again = micro(fixed, given, replace(OBJECTIVE, token_weights=numbers))[0]
    again.backward()
    torch.testing.assert_close(model.table.grad, fixed.table.grad)
