"""The benchmarks on a very small shape: they measure the real thing, and counted FLOPs are the closed form's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmreason.bench import BENCHES, Shape, rollouts
from mmreason.bench import saved as memories
from mmreason.bench.measure import LinearFlops, Times, compared, interleaved, kept_for_backward, log_uniform
from mmreason.bench.steps import prepared
from mmreason.bench.work import context_of, grpo_recipe, picture, workplace
from tests.bench.shapes import SMALL
from tests.house.test_cli import mmreason


@pytest.fixture(scope="module", autouse=True)
def _short_ragged_rows() -> Any:
    """The ragged part with 3 groups of up to 24 tokens."""
    patch = pytest.MonkeyPatch()
    patch.setattr(rollouts, "RAGGED_GROUPS", 3)
    patch.setattr(rollouts, "LONGEST", 24)
    yield
    patch.undo()


def test_sides_take_turns() -> None:
    calls: list[str] = []
    taken = interleaved({"plain": lambda: calls.append("a"), "shared": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" + "ba" + "ab"
    assert [(len(times.wall), len(times.cpu)) for times in taken.values()] == [(3, 3), (3, 3)]


def test_medians_and_their_ratio() -> None:
    sides = {"plain": Times([8.0, 1.0, 4.0], [3.0]), "shared": Times([2.0, 1.0, 9.0], [1.5])}
    told = compared(sides, "plain", "shared")
    assert told["cpu_ratio"] == 2.0 and told["rounds"] == 3
    assert (told["plain_s"], told["shared_s"], told["ratio"]) == (4.0, 2.0, 2.0)
    assert told["spread"] == {"plain": [1.0, 8.0], "shared": [1.0, 9.0]}


def test_flops_of_linear_layers_forward_and_backward() -> None:
    layer = nn.Linear(5, 7)
    x = torch.randn(2, 3, 5, requires_grad=True)
    with LinearFlops() as forward:
        out = layer(x)
        torch.bmm(x, x.transpose(1, 2))  # attention's products are left out
    assert forward.total == 2 * 6 * 5 * 7
    with LinearFlops() as backward:
        out.sum().backward()
    assert backward.total == 2 * forward.total


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    x = torch.randn(4, 6)
    with kept_for_backward([weight]) as kept:
        ((x @ weight) + (x @ weight)).sum()
        assert kept() == x.numel() * 4  # both products keep the same x, and the weight is no activation
        (x @ weight).exp().sum()
        assert kept() == 2 * x.numel() * 4


def test_lengths_are_spread_log_uniformly() -> None:
    lengths = log_uniform(4000, 8, 256)
    assert lengths.min() == 8 and 250 < lengths.max() <= 256
    assert abs(float((lengths > 45).float().mean()) - 0.5) < 0.03  # the geometric middle
    assert abs(float(lengths.float().mean()) - 248 / torch.log(torch.tensor(32.0))) < 3


def linear_parameters(model: Any, part: str) -> int:
    modules = model.get_submodule(part).modules()
    return sum(m.weight.numel() for m in modules if isinstance(m, nn.Linear))


def closed_form(shape: Shape, folder: Path, *, k: int) -> float:
    """A2's ratio without attention: (Fn + G W + k Fn + G W') over (Fs + W + k Fs + W'), in linear FLOPs.

    The whole model learns: k = 3 passes of an update, and 3 vision passes of it; k = 0 is a rollout.
    """
    context = context_of(grpo_recipe(shape, folder, "auto"))
    prompt = len(context.feed.prompt(context.sources["rows"][0]) or ())
    n = 2 * linear_parameters(context.model, "model.language_model")
    head = 2 * context.model.lm_head.weight.numel()
    g, c = shape.group, shape.new_tokens
    blocks = linear_parameters(context.model, "model.visual.blocks") * 4 * shape.image_tokens
    merger = linear_parameters(context.model, "model.visual.merger") * shape.image_tokens
    w = 2 * (blocks + merger)
    naive = g * n * (prompt + c) + g * head * c
    shared = n * (prompt + g * c) + g * head * c
    return (naive + g * w + k * (naive + g * w)) / (shared + w + k * (shared + w))


@pytest.mark.parametrize("name, k", [("rollout", 0), ("step", 3)])
def test_flops_are_those_of_the_closed_form(name: str, k: int) -> None:
    result = BENCHES[name](SMALL, 2)
    assert result["rounds"] == 2
    with workplace(SMALL) as folder:
        wanted = closed_form(SMALL, folder, k=k)
    assert result["flop_ratio"] == pytest.approx(wanted, rel=0.05)
    assert wanted > 2.5
    assert result["plain_s"] > 0 and result["shared_s"] > 0
    assert result["ratio"] == pytest.approx(result["plain_s"] / result["shared_s"])
    assert result["shape"] == SMALL.as_dict() and result["environment"]["torch"] == torch.__version__
    if name == "step":
        assert result["saved_bytes_ratio"] == result["saved_bytes"]["plain"] / result["saved_bytes"]["shared"]
        assert result["saved_bytes_ratio"] > 2
        assert set(result["completion_tokens"].values()) == {float(SMALL.group * SMALL.new_tokens)}
    else:
        lengths = result["dropping"]["lengths"]
        assert 8 <= lengths["least"] < lengths["mean"] < lengths["most"] <= 24
        assert result["dropping"]["rows"] == 12 and result["dropping"]["rounds"] == 2
        assert all(len(set(ends)) == 2 for ends in result["dropping"]["spread"].values())


def test_the_picture_makes_the_tokens_of_the_shape() -> None:
    with workplace(SMALL) as folder:
        context = context_of(grpo_recipe(SMALL, folder, "auto"))
        prompts = [context.feed.prompt(sample) for sample in context.sources["rows"]]
    assert all(p is not None and int((p.token_types == 1).sum()) == 64 for p in prompts) and len(prompts) == 4
    with pytest.raises(ValueError, match="image_tokens=60 is no square; take 64 or 81"):
        picture(Shape(image_tokens=60), 0)


def test_what_is_kept_is_less_with_sharing() -> None:
    plain, shared = (memories.measured(SMALL, mode) for mode in ("off", "auto"))
    assert plain["saved_bytes"] > 2 * shared["saved_bytes"] > 0
    assert plain["flops"] > 2 * shared["flops"] > 0
    assert plain["peak_rss_bytes"] >= plain["before_step_rss_bytes"] > 2**20


def test_the_key_decides_the_side() -> None:
    with workplace(SMALL) as folder:
        for mode in ("off", "auto"):
            _, trainer = prepared(SMALL, folder, mode)
            assert trainer.sharing.mode == mode and trainer.check is False


def test_sft_sides_learn_the_same() -> None:
    """Ragged rows padded and packed; questions on pictures of 64 tokens alone and four a row."""
    result = BENCHES["sft"](SMALL, 1)
    for told in (result, result["questions"]):
        assert told["loss_relative_difference"] <= 1e-6
        assert told["tokens_per_s"]["shared"] == pytest.approx(told["tokens_per_s"]["plain"] * told["ratio"])
        assert told["flop_ratio"] > 1.5
    assert result["padding"]["shared"] == 0.0 and result["padding"]["plain"] > 0.3


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own() -> None:
    result = BENCHES["memory"](Shape(image_tokens=16, new_tokens=4, group=2), 1)
    assert result["saved_bytes_ratio"] == result["saved_bytes"]["plain"] / result["saved_bytes"]["shared"] > 1
    assert result["flop_ratio"] > 1 and result["ratio"] == result["plain_s"] / result["shared_s"]
    assert all(rss > 2**20 for rss in result["peak_rss_bytes"].values())


def test_the_command(tmp_path: Path) -> None:
    small = ["--rounds", "1", "--image-tokens", "16", "--new-tokens", "4", "--num-generations", "2"]
    done = mmreason("bench", "step", *small, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"plain_s", "shared_s", "ratio", "flop_ratio", "saved_bytes_ratio"} <= result.keys()
    assert {"environment", "peak_rss_bytes"} <= result.keys()
    assert result["shape"]["image_tokens"] == 16 and "spread.plain" in done.stderr
