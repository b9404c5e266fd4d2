"""The gated delta rule in chunks against its own recurrence, token by token; and where it stands in for another."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from mmreason.model import delta_rule as room
from mmreason.model.delta_rule import REFERENCE, delta_rule, exact_decays
from mmreason.model.load import gradient_checkpointing
from mmreason.train.micro import Sharing
from mmreason.train.step import Objective
from tests.model.test_shared_states import hybrid
from tests.train.rows import sft_rows
from tests.train.test_step import step_grads, trainer_of

Inputs = list[torch.Tensor]


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token after the other; keys and queries have norm 1 already."""
    times = v.shape[2] // k.shape[2]
    q, k = (x.repeat_interleave(times, dim=2) for x in (q * q.shape[-1] ** -0.5, k))
    read = []
    for t in range(q.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        known = (state * k[:, t].unsqueeze(-1)).sum(-2)
        change = (v[:, t] - known) * beta[:, t].unsqueeze(-1)
        state = state + k[:, t].unsqueeze(-1) * change.unsqueeze(-2)
        read.append((state * q[:, t].unsqueeze(-1)).sum(-2))
    return torch.stack(read, dim=1), state


def inputs(tokens: int, heads: int = 2, decay: float = 1.0) -> Inputs:
    """q, k [2, T, 2, 6], v [2, T, heads, 4], decays, strengths and a state, float64."""
    q, k = (torch.randn(2, tokens, 2, 6, dtype=torch.float64) for _ in range(2))
    v, state = torch.randn(2, tokens, heads, 4).double(), torch.randn(2, heads, 6, 4).double()
    g, beta = (torch.rand(2, tokens, heads, dtype=torch.float64) for _ in range(2))
    return [q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True), v, -decay * g, beta, state]


def ours(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, **more: Any) -> tuple[Any, Any]:
    return delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True, **more)


def weighed(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A number in which every output has its own part."""
    return torch.stack([(x * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in outputs]).sum()


@pytest.mark.parametrize("tokens", [1, 2, 9, 16, 17, 40])
@pytest.mark.parametrize("heads", [2, 4])
def test_values_and_gradients(tokens: int, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "float32", torch.float64)  # the rule asks for it by name
    given = [x.requires_grad_() for x in inputs(tokens, heads)]
    wanted, got = recurrence(*given), ours(*given, chunk_size=16)
    for one, other in zip(wanted, got, strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)
    gradients = (torch.autograd.grad(weighed(out), given) for out in (wanted, got))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-11, rtol=0)


def test_norms_and_an_empty_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(room, "EPS", 0.0)
    q, k, v, g, beta, state = inputs(9)
    wanted = recurrence(q, k, v, g, beta, torch.zeros_like(state))[0]
    got, behind = delta_rule(3 * q, 0.2 * k, v, g, beta, use_qk_l2norm_in_kernel=True)
    assert torch.allclose(got, wanted, atol=1e-12, rtol=0) and behind is None


@pytest.mark.parametrize("exact", [True, False])
def test_the_gradient_of_strong_decays(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, where hardly anything is left of a token at the next one, to 1e-4; not so were sums in float32."""
    given = inputs(64, decay=30.0)
    narrow = [x.float().requires_grad_() for x in given]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    if not exact:
        real = room._decays
        monkeypatch.setattr(room, "_decays", lambda g, dtype: real(g.to(dtype), dtype))
    truth = torch.autograd.grad(weighed(recurrence(*wide)), wide[3])[0]
    found = torch.autograd.grad(weighed(ours(*narrow)), narrow[3])[0]
    weak = truth.abs() < 1e-2 * truth.abs().max()  # where rounding of larger ones would show
    error = float((found - truth)[weak].norm() / truth[weak].norm())
    assert (error < 1e-4) is exact, error


def test_it_stands_in_as_long_as_it_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = hybrid("qwen3_next")
    code = sys.modules["transformers.models.qwen3_next.modeling_qwen3_next"]
    theirs = getattr(code, REFERENCE)
    with pytest.raises(KeyError), exact_decays(loaded.model):
        assert getattr(code, REFERENCE) is delta_rule
        raise KeyError
    assert getattr(code, REFERENCE) is theirs
    monkeypatch.setattr(room, "_has_kernels", room._has_kernels.__wrapped__)
    for fla, rule in ((ModuleType("fla"), theirs), (None, delta_rule)):
        # with a kernel it is not the reference that runs; None: the package is there and cannot be imported
        monkeypatch.setitem(sys.modules, "fla", fla)
        with exact_decays(loaded.model):
            assert getattr(code, REFERENCE) is rule


@pytest.mark.parametrize("mode", ["off", "require"])
def test_training_runs_by_it_either_way(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputed activations in the backward pass too."""
    loaded = hybrid("qwen3_5")
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return delta_rule(*args, **kwargs)

    monkeypatch.setattr(room, "delta_rule", counted)
    gradient_checkpointing(loaded.model, True)
    trainer = trainer_of(loaded)
    trainer.sharing = Sharing(mode)
    step_grads(trainer, sft_rows(loaded.processor, 2), Objective())
    layers = loaded.model.get_decoder().config.layer_types.count("linear_attention")
    assert calls and len(calls) % (2 * layers) == 0
