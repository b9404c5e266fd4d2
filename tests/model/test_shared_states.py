"""Hybrids of full and linear attention: one prompt for all its completions, in values and gradients as row by row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.model import delta_rule, shared_states
from mmreason.model.load import Loaded, gradient_checkpointing, load_model
from mmreason.model.shared_attention import Layout, Span, attention_of
from mmreason.model.shared_fit import needs_side_by_side, unpackable, untrainable
from mmreason.model.shared_states import State, joined
from mmreason.train.micro import Sharing
from mmreason.train.step import Objective, train_step
from mmreason.types import Rendered
from tests.model.groups import Scores, apart, plain, rows_of, shared, transformers_own, with_adapters
from tests.model.test_shared_forward import GRADIENTS, VALUES, assert_equal, behind, groups_of
from tests.rollout.mixes import prompts_of
from tests.rollout.test_ends import HYBRIDS
from tests.tiny import TEXTS, tiny_model_config
from tests.train.rows import grpo_rows, sft_rows
from tests.train.test_step import difference, objective_of, step_grads, trainer_of


@pytest.fixture(params=sorted(HYBRIDS))
def loaded(request: pytest.FixtureRequest) -> Loaded:
    return hybrid(request.param)


def hybrid(name: str, seed: int = 0) -> Loaded:
    llm = {**HYBRIDS[name], "initializer_range": 0.1}
    loaded = load_model(tiny_model_config(llm=llm), texts=lambda: TEXTS, seed=seed)
    loaded.model.train()
    return loaded


def both(loaded: Loaded) -> list[list[list[Rendered]]]:
    """Prompts with pictures and without; completions of one token, as many as it takes for a step of decoding, and of
    more than the 64 that a layer computes at once.
    """
    prompt = prompts_of(loaded, ("",))[0]
    long = [rows_of(loaded, prompt, [130, 1, 70]), rows_of(loaded, prompt, [1, 1])]
    return [groups_of(loaded, ("i", "", "ii")), long]


@pytest.mark.parametrize("seed", [0, 2, 4])
@pytest.mark.parametrize("name", HYBRIDS)
def test_values_and_gradients(name: str, seed: int) -> None:
    """Ragged rows, all groups in one packed row and each by itself; the largest difference seen is 6e-5."""
    loaded = hybrid(name, seed)
    assert untrainable(loaded.model) is None
    for groups in both(loaded):
        assert_equal(loaded, groups)
        for group in groups:
            assert_equal(loaded, [group])


def test_what_differs_is_rounding(loaded: Loaded) -> None:
    """With every number in float64 next to nothing is left, also of the difference to transformers' own rule."""
    for groups in both(loaded):
        wanted = wide(transformers_own, loaded, groups)
        for way in (plain, shared):
            values, gradient, worst = apart(wanted, wide(way, loaded, groups))
            assert values <= 1e-13 and gradient <= 1e-11, (values, gradient, worst)


def wide(way: Callable[..., Scores], loaded: Loaded, groups: list[list[Rendered]]) -> Scores:
    """Scores and gradients with every number in float64; the layers ask for float32 by name."""
    copied = replace(loaded, model=copy.deepcopy(loaded.model).double())
    rows = [[replace(row, media={n: widened(x) for n, x in row.media.items()}) for row in g] for g in groups]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return way(copied, rows)


def widened(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_decays_are_nearer_to_the_truth_than_transformers_own(name: str) -> None:
    """Measured here: 1e-5 and less against 1.2e-3 and more. Where the latter is mended, model/delta_rule.py can go."""
    loaded = hybrid(name, seed=4)
    groups = both(loaded)[0]
    truth = wide(transformers_own, loaded, groups)
    ours, theirs = shared(loaded, groups), transformers_own(loaded, groups)
    assert apart(truth, ours)[1] <= GRADIENTS < apart(truth, theirs)[1]
    assert apart(theirs, ours)[0] <= VALUES  # values are the same


def test_decays_in_float32_show(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = hybrid("qwen3_next", seed=2)
    groups = both(loaded)[1]
    real = delta_rule._decays
    monkeypatch.setattr(delta_rule, "_decays", lambda g, dtype: real(g.to(dtype), dtype))
    assert apart(plain(loaded, groups), shared(loaded, groups))[1] > GRADIENTS


def test_rows_of_no_group(loaded: Loaded) -> None:
    """Supervised rows, which share nothing, packed behind each other; as long as they are, and side by side."""
    rows = sft_rows(loaded.processor, 5)
    trainer = trainer_of(replace(loaded, model=copy.deepcopy(loaded.model)))
    loss, wanted = step_grads(trainer_of(loaded), rows, Objective())
    trainer.sharing = Sharing("require")
    again, found = step_grads(trainer, rows, Objective())
    assert again == pytest.approx(loss, rel=1e-5) and difference(found, wanted) < 2e-5


def test_questions_side_by_side_need_packing(loaded: Loaded) -> None:
    assert unpackable(loaded.model, "auto", gathers=False) is None
    padded = unpackable(loaded.model, "off", gathers=False)
    with pytest.raises(
        ValueError, match="shared_prefix is off, and the model has layers of linear.* to auto"
    ):
        needs_side_by_side(loaded.model, "assembled", "sdpa", padded)


def test_layers_that_take_no_state_have_a_name(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_states, "_takes_state", lambda module: False)
    reason = untrainable(loaded.model)
    assert reason is not None and reason.name == "linear_attention"


def test_adapters_and_recomputed_activations(loaded: Loaded) -> None:
    groups = groups_of(loaded, ("i", ""))
    adapted = with_adapters(loaded)
    kept = shared(adapted, groups)
    assert_equal(adapted, groups)
    gradient_checkpointing(adapted.model, True)
    adapted.model.enable_input_require_grads()
    assert_equal(adapted, groups)
    values, gradient, _ = apart(kept, shared(adapted, groups))
    assert values == 0.0 and gradient <= 1e-6


def test_recomputed_activations(loaded: Loaded) -> None:
    """States are made anew inside the layers: no cache is forked that checkpointing would drop."""
    groups = groups_of(loaded, ("i", "ii"))
    kept = shared(loaded, groups)
    gradient_checkpointing(loaded.model, True)
    assert_equal(loaded, groups)
    values, gradient, _ = apart(kept, shared(loaded, groups))
    assert values == 0.0 and gradient <= 1e-6


def test_media_behind_the_prompt(loaded: Loaded) -> None:
    first, tool = prompts_of(loaded, ("i", "i"))
    rows = rows_of(loaded, first, [4, 6, 2])
    more = rows_of(loaded, tool, [5], seed=1)[0]
    assert_equal(loaded, [[rows[0], behind(rows[1], more), behind(rows[2], more)]])


def test_the_layers_are_themselves_again(loaded: Loaded) -> None:
    decoder = loaded.model.get_decoder()
    (module, *_) = shared_states.linear_layers(decoder)
    assert isinstance(module, nn.Module)
    layouts = [Layout((Span(0, n, (2,)),)) for n in (3, 4)]
    with pytest.raises(KeyError), attention_of(loaded.model, layouts[0]):
        outer = module.forward
        with attention_of(loaded.model, layouts[1]):
            assert module.forward is not outer
        assert module.forward is outer
        raise KeyError
    assert "forward" not in vars(module)


# --- mutants


def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state runs on over the packed row."""
    monkeypatch.setattr(shared_states, "_by_layout", lambda original, layout: original)


def from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suffixes begin without their prompt's state."""
    monkeypatch.setattr(State, "of_rows", lambda self, prompts: State())


def of_another_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "of_rows", lambda self, p, real=State.of_rows: real(self, p.max() - p))


def without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution does not see the prompt's last tokens."""

    def cut(self: State, prompts: torch.Tensor, real: Any = State.of_rows) -> State:
        made = real(self, prompts)
        made.conv = {n: torch.zeros_like(x) for n, x in made.conv.items()}
        return made

    monkeypatch.setattr(State, "of_rows", cut)


def detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values stay as they are; no gradient flows into the prompt."""

    def cut(self: State, prompts: torch.Tensor, real: Any = State.of_rows) -> State:
        made = real(self, prompts)
        made.recurrent = {n: x.detach() for n, x in made.recurrent.items()}
        return made

    monkeypatch.setattr(State, "of_rows", cut)


@pytest.mark.parametrize("mutant", [leak, from_nothing, of_another_prompt, without_columns, detached])
def test_mutants_fail(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = hybrid("qwen3_next")
    groups = groups_of(loaded, ("i", "", "ii"))
    wanted = plain(loaded, groups)
    mutant(monkeypatch)
    values, gradient, _ = apart(wanted, shared(loaded, groups))
    assert (values > 1e-3) == (mutant is not detached) and gradient > 1e-2


def test_the_first_step_s_check_names_the_layer_and_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = hybrid("qwen3_5")
    rows = [row for row in grpo_rows(loaded.processor, 6) if row.group != 1]
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing("require")
    from_nothing(monkeypatch)
    with pytest.raises(
        ValueError, match=r"first layer to differ is layer 0 \(linear_attention, Qwen3_5DecoderLayer\)"
    ):
        train_step(trainer, rows, objective_of(loaded), 0.0)


def test_columns_of_short_prompts_begin_with_zeros() -> None:
    short, long = State(), State()
    short.update_conv_state(torch.ones(1, 2, 1), 0, conv_kernel_size=3)
    long.update_conv_state(torch.ones(1, 2, 5), 0, conv_kernel_size=3)
    both = joined([short, long])
    assert both.conv[0].tolist() == [[[0, 0, 1]] * 2, [[1, 1, 1]] * 2]
