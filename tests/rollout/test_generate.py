"""The plain rollout: what is never sampled, what greedy equals, and that training sees the sampler's probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, GenerationConfig

from mmreason.model.family import media_inputs
from mmreason.model.load import Loaded, load_model
from mmreason.objective import grpo_samples, sft_sample
from mmreason.render import Renderer
from mmreason.rollout import forked
from mmreason.rollout.generate import SamplingParams, generate, left_pad, trajectory
from mmreason.schema import ModelConfig
from mmreason.train.distributed import make_backend
from mmreason.train.micro import Sharing
from mmreason.train.step import Objective, fixed_logprobs
from mmreason.types import Group, Rendered, Trajectory
from tests.tiny import KINDS
from tests.train.rows import picture_sample

ALL = ("assembled", *KINDS)


@pytest.fixture(params=ALL)
def loaded(
    request: pytest.FixtureRequest, assembled_folder: Path, native_folder: Callable[[str], Path]
) -> Loaded:
    folder = assembled_folder if request.param == "assembled" else native_folder(request.param)
    return load_model(ModelConfig(model_name_or_path=str(folder)), texts=lambda: [], seed=0)


@pytest.fixture
def assembled(assembled_folder: Path) -> Loaded:
    return load_model(ModelConfig(model_name_or_path=str(assembled_folder)), texts=lambda: [], seed=0)


def prompts_of(renderer: Renderer, count: int = 4) -> list[Rendered]:
    """Of different lengths; every second one has a picture."""
    return [renderer.prompt(*picture_sample(i)) for i in range(count)]


def run(loaded: Loaded, count: int, params: SamplingParams, rows: int = 4) -> list[list[Trajectory]]:
    renderer = Renderer(loaded.processor)
    return generate(loaded.model, loaded.family, renderer, prompts_of(renderer, rows), count, params)


def written(groups: Sequence[Sequence[Trajectory]]) -> list[list[int]]:
    return [t.ids.tolist() for group in groups for t in group]


def favour(loaded: Loaded, ids: Sequence[int], by: float) -> Any:
    """Add `by` to the logits of `ids`, as a model would that wants nothing else."""
    head = loaded.model.get_output_embeddings()

    def hook(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., list(ids)] += by
        return logits

    return head.register_forward_hook(hook)


@pytest.mark.parametrize("engine", [generate, forked.generate])
@pytest.mark.parametrize("greedy", [True, False])
def test_placeholders_are_never_sampled(loaded: Loaded, greedy: bool, engine: Any) -> None:
    renderer = Renderer(loaded.processor)
    assert set(loaded.family.placeholder_ids) <= set(renderer.placeholder_ids)
    hook = favour(loaded, renderer.placeholder_ids, 1000.0)
    params = SamplingParams(6, greedy=greedy)
    ids = written(engine(loaded.model, loaded.family, renderer, prompts_of(renderer, 2), 2, params))
    hook.remove()
    assert len(ids) == 4 and not {i for row in ids for i in row} & set(renderer.placeholder_ids)


def test_without_the_ban_they_would_be(assembled: Loaded) -> None:
    renderer = Renderer(assembled.processor)
    assembled.model.generation_config.suppress_tokens = None
    blind: Any = SimpleNamespace(**vars(renderer) | {"placeholder_ids": (), "decode": renderer.decode})
    hook = favour(assembled, renderer.placeholder_ids[:1], 1000.0)
    prompts = prompts_of(renderer, 2)[1:]
    got = generate(assembled.model, assembled.family, blind, prompts, 1, SamplingParams(1, greedy=True))
    assert written(got) == [[renderer.placeholder_ids[0]]]
    with pytest.raises(ValueError, match="1 image placeholder tokens in input_ids for 0 image features"):
        generate(assembled.model, assembled.family, blind, prompts, 1, SamplingParams(2, greedy=True))
    hook.remove()


def test_greedy_is_transformers_own_row_by_row(loaded: Loaded) -> None:
    """No padding, no other rows, nothing of ours but the ban."""
    renderer = Renderer(loaded.processor)
    prompts = prompts_of(renderer)
    assert len({len(p) for p in prompts}) > 2  # so that padding matters
    together = generate(
        loaded.model, loaded.family, renderer, prompts, 1, SamplingParams(8, greedy=True, max_rows=3)
    )
    model = loaded.model.eval()
    for prompt, group in zip(prompts, together, strict=True):
        out = model.generate(
            input_ids=prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids)[None],
            **media_inputs(loaded.family, prompt.media, prompt.token_types[None]),
            generation_config=GenerationConfig(
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=list(renderer.eos_ids),
                pad_token_id=renderer.pad_id,
                suppress_tokens=list(renderer.placeholder_ids),
            ),
        )
        assert group[0].ids.tolist() == out[0, len(prompt) :].tolist()


def test_the_seed_decides_the_draw(assembled: Loaded) -> None:
    draws = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        draws.append(written(run(assembled, 3, SamplingParams(6, temperature=1.3))))
    assert draws[0] == draws[1] != draws[2]
    assert len({tuple(row) for row in draws[0]}) > 6  # the rows of a group differ


def test_completions_come_in_the_order_of_the_prompts(assembled: Loaded) -> None:
    """Rows are decoded by length; the answers go back where they belong."""
    renderer = Renderer(assembled.processor)
    prompts = prompts_of(renderer)
    params = SamplingParams(6, greedy=True, max_rows=3)
    there = generate(assembled.model, assembled.family, renderer, prompts, 2, params)
    back = generate(assembled.model, assembled.family, renderer, prompts[::-1], 2, params)
    assert written(there) == written(back[::-1]) and [len(g) for g in there] == [2] * 4


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_training_sees_the_probabilities_that_sampling_used(loaded: Loaded, temperature: float) -> None:
    """The sampler's log-probabilities of its tokens, against the step's."""
    renderer = Renderer(loaded.processor)
    prompts = prompts_of(renderer)
    params = SamplingParams(7, temperature=temperature, max_rows=2)
    groups = generate(loaded.model, loaded.family, renderer, prompts, 2, params)
    trainer: Any = SimpleNamespace(
        model=loaded.model,
        sharing=Sharing(),
        family=loaded.family,
        backend=make_backend("plain"),
        pad_id=renderer.pad_id,
        max_tokens=4096,
        bf16=False,
    )
    objective = Objective(banned=renderer.placeholder_ids, temperature=temperature)
    for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        sample, _ = picture_sample(i)
        rows = grpo_samples(
            Group(sample, prompt, tuple(group)),
            [1.0, -1.0],
            loss_type="dapo",
            beta=0.0,
            max_completion_length=7,
            mask_truncated=False,
            group_id=0,
        )
        ours = fixed_logprobs(loaded.model, trainer, rows, objective)
        for row, line in zip(group, ours, strict=True):
            assert row.logprobs is not None
            known = line[len(prompt) :]
            torch.testing.assert_close(known, row.logprobs, atol=1e-5, rtol=0)  # measured 1e-6


def test_a_seed_gives_the_completion_that_the_forked_engine_writes(loaded: Loaded) -> None:
    renderer = Renderer(loaded.processor)
    prompts = prompts_of(renderer)
    params = SamplingParams(9, temperature=1.3, top_p=0.95, top_k=60)
    seeds = torch.arange(12) * 31 + 5
    model, family = loaded.model, loaded.family
    plain = generate(model, family, renderer, prompts, 3, params, seeds)
    assert written(plain) == written(forked.generate(model, family, renderer, prompts, 3, params, seeds))
    assert written(plain) != written(generate(model, family, renderer, prompts, 3, params, seeds + 1))


def test_a_row_ends_at_its_first_end_token(assembled_folder: Path) -> None:
    renderer = Renderer(AutoProcessor.from_pretrained(assembled_folder))
    end = renderer.eos_ids[0]
    stopped = trajectory(torch.tensor([40, 41, end, end, 42]), renderer)
    assert stopped.ids.tolist() == [40, 41, end] and stopped.finish == "stop"
    assert stopped.text == renderer.decode([40, 41]) and stopped.sampled.all()
    cut = trajectory(torch.tensor([40, 41, 43]), renderer)
    assert cut.ids.tolist() == [40, 41, 43] and cut.finish == "length"
    assert cut.text == renderer.decode([40, 41, 43])


def test_prompts_are_padded_on_the_left(assembled_folder: Path) -> None:
    renderer = Renderer(AutoProcessor.from_pretrained(assembled_folder))
    prompts = prompts_of(renderer, 2)
    ids, mask, types = left_pad(prompts, renderer.pad_id)
    for row, prompt in enumerate(prompts):
        pad = ids.shape[1] - len(prompt)
        assert ids[row].tolist() == [renderer.pad_id] * pad + prompt.ids.tolist()
        assert mask[row].tolist() == [0] * pad + [1] * len(prompt)
        assert types[row].tolist() == [0] * pad + prompt.token_types.tolist()


def test_generating_leaves_the_models_mode_alone(assembled: Loaded) -> None:
    for training in (True, False):
        assembled.model.train(training)
        run(assembled, 1, SamplingParams(1), rows=1)
        assert assembled.model.training is training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["plain", "forked", "fixed"])
def test_an_exception_leaves_the_model_as_it_was(
    way: str, training: bool, assembled: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training where it was in training: what comes next would else learn without dropout, and never say so."""
    renderer = Renderer(assembled.processor)
    prompts = prompts_of(renderer, 2)
    modes: list[bool] = []

    def broken(**inputs: Any) -> Any:
        modes.append(assembled.model.training)
        raise KeyError("no such luck")

    assembled.model.train(training)
    monkeypatch.setattr(assembled.model.language_model, "forward", broken)
    arguments = (assembled.model, assembled.family, renderer, prompts, 1, SamplingParams(4))
    trainer: Any = SimpleNamespace(
        model=assembled.model,
        sharing=Sharing(),
        family=assembled.family,
        backend=make_backend("plain"),
        pad_id=renderer.pad_id,
        max_tokens=4096,
        bf16=False,
    )
    with pytest.raises(KeyError, match="no such luck"):
        if way == "fixed":
            row = sft_sample(renderer.full(*picture_sample(0, with_answer=True)))
            fixed_logprobs(assembled.model, trainer, [row], Objective())
        else:
            {"plain": generate, "forked": forked.generate}[way](*arguments)
    assert modes == [False]
    assert all(m.training is training for m in assembled.model.modules())
