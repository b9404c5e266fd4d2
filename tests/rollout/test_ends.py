"""Rows that have ended leave the batch; rows with limits of their own; layers that keep a state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmreason.model.load import Loaded, load_model
from mmreason.model.shared_fit import unshareable
from mmreason.render import Renderer
from mmreason.rollout import budget, forked, generate
from mmreason.rollout.forked_cache import ForkedState
from mmreason.rollout.sampling import SamplingParams
from mmreason.types import Trajectory
from tests.rollout.mixes import impatient, model_of, prompts_of, same_logprobs, written
from tests.tiny import QWEN3, TEXTS, tiny_model_config

LINEAR: dict[str, Any] = {
    **{k: v for k, v in QWEN3.items() if k != "model_type"},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
HYBRIDS = {
    "qwen3_next": {"model_type": "qwen3_next", "num_experts": 0, **LINEAR},
    "qwen3_5": {"model_type": "qwen3_5_text", **LINEAR},
    "olmo_hybrid": {"model_type": "olmo_hybrid", **LINEAR},
}
SEEDS = torch.arange(9) * 7919 + 11


def limited(
    loaded: Any, count: int, params: SamplingParams, limits: torch.Tensor | None
) -> list[list[Trajectory]]:
    prompts = prompts_of(loaded, ("i", "", "v"))
    renderer = impatient(loaded, ends=())
    return forked.generate(
        loaded.model, loaded.family, renderer, prompts, count, params, SEEDS[: 3 * count], limits
    )


def test_limits_cut_each_row_for_itself(native_folder: Callable[[str], Path]) -> None:
    loaded = model_of("assembled", native_folder)
    limits = torch.tensor([1, 12, 5, 7, 12, 2, 12, 3, 9])
    whole = limited(loaded, 3, SamplingParams(12), None)
    short = limited(loaded, 3, SamplingParams(12), limits)
    rows = zip(written(whole), [t for g in short for t in g], limits.tolist(), strict=True)
    for before, row, limit in rows:
        assert row.ids.tolist() == before[:limit] and len(row) == min(limit, len(before))
        assert row.finish == ("length" if limit < len(before) or len(before) == 12 else "stop")


def test_rows_that_ended_cost_nothing_more(native_folder: Callable[[str], Path]) -> None:
    """The same rows with and without dropping; without, every step forwards all of them to the end of the last."""
    loaded = model_of("assembled", native_folder)
    limits = torch.tensor([1, 12, 5, 7, 12, 2, 12, 3, 9])
    forwarded: list[int] = []
    made = {}
    for drop in (True, False):
        steps: list[int] = []
        hook = loaded.model.language_model.model.register_forward_pre_hook(
            lambda module, args, kwargs, steps=steps: steps.append(len(kwargs["inputs_embeds"])),
            with_kwargs=True,
        )
        made[drop] = limited(loaded, 3, SamplingParams(12, drop_finished=drop), limits)
        hook.remove()
        forwarded.append(sum(steps[1:]))
    assert written(made[True]) == written(made[False]) and same_logprobs(made[True], made[False])
    lengths = [len(row) for row in written(made[True])]
    assert forwarded == [sum(n - 1 for n in lengths), 9 * (max(lengths) - 1)]


# --- layers of linear attention, whose state is copied for each row


@pytest.fixture(params=sorted(HYBRIDS))
def hybrid(request: pytest.FixtureRequest) -> Loaded:
    loaded = load_model(tiny_model_config(llm=HYBRIDS[request.param]), texts=lambda: TEXTS, seed=0)
    loaded.model.eval()
    return loaded


def sampled(loaded: Loaded, senses: tuple[str, ...] = ("i", "", "ii")) -> Any:
    prompts = prompts_of(loaded, senses)
    params = SamplingParams(10, temperature=1.3)
    renderer = impatient(loaded, range(3, 250, 11))
    return forked.generate(loaded.model, loaded.family, renderer, prompts, 3, params, SEEDS)


def one_by_one(loaded: Loaded) -> list[list[Trajectory]]:
    prompts = [prompt for prompt in prompts_of(loaded, ("i", "", "ii")) for _ in range(3)]
    params = SamplingParams(10, temperature=1.3, max_rows=1)
    renderer = impatient(loaded, range(3, 250, 11))
    rows = forked.generate(loaded.model, loaded.family, renderer, prompts, 1, params, SEEDS)
    return [[t for (t,) in rows[i : i + 3]] for i in (0, 3, 6)]


def test_hybrids_fork(hybrid: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unshareable(hybrid.model) is None
    prompts = prompts_of(hybrid, ("i", "", "ii"))
    renderer = Renderer(hybrid.processor)
    arguments = (hybrid.model, hybrid.family, renderer, prompts, 1, SamplingParams(12, greedy=True))
    assert written(forked.generate(*arguments)) == written(generate.generate(*arguments))
    together, alone = sampled(hybrid), one_by_one(hybrid)
    assert written(together) == written(alone) and same_logprobs(together, alone)
    assert len({len(row) for row in written(together)}) > 2
    monkeypatch.setattr(budget, "PREFILL_TOKENS", 30)
    assert written(sampled(hybrid)) == written(alone)  # prompts that are prefilled in parts


def states_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that takes another's place finds that one's state there."""

    def cut(self: ForkedState, to: torch.Tensor, origin: torch.Tensor, rows: int) -> None:
        for states in (self.conv_states, self.recurrent_states):
            states[0] = states[0][:rows]

    monkeypatch.setattr(ForkedState, "move", cut)


def wrong_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkedState, "fork", lambda self, owner, most: self.reorder_cache(owner.flip(0)))


def siblings_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of a prompt write into one state."""
    update = ForkedState.update_recurrent_state
    monkeypatch.setattr(
        ForkedState,
        "update_recurrent_state",
        lambda self, states, state_idx=0: update(
            self, states.mean(0, keepdim=True).expand_as(states), state_idx
        ),
    )


@pytest.mark.parametrize("mutant", [states_stay, wrong_prompt, siblings_share])
def test_wrong_states_are_seen(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_model_config(llm=HYBRIDS["qwen3_next"]), texts=lambda: TEXTS, seed=0)
    loaded.model.eval()
    right = sampled(loaded)
    mutant(monkeypatch)
    wrong = sampled(loaded)
    assert not (written(right) == written(wrong) and same_logprobs(right, wrong))
