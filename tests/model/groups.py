"""Groups of ragged rows on prompts of every medium, and their log-probabilities and gradients in both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmreason.data.loader import collate
from mmreason.model.delta_rule import exact_decays
from mmreason.model.family import forward_inputs
from mmreason.model.load import Loaded
from mmreason.model.parts import add_lora
from mmreason.model.shared_attention import attention_of
from mmreason.model.shared_forward import head_of, hidden_states
from mmreason.model.shared_rows import Packed, Shared, beginning, pack_rows
from mmreason.objective import hidden_logprobs, sft_sample, token_logprobs
from mmreason.render import with_completion
from mmreason.schema import ModelConfig
from mmreason.types import Rendered

CPU = torch.device("cpu")
Scores = tuple[
    list[torch.Tensor], dict[str, torch.Tensor]
]  # log-probabilities of each row, gradients by name


def rows_of(loaded: Loaded, prompt: Rendered, lengths: Sequence[int], seed: int = 0) -> list[Rendered]:
    """The prompt with made-up completions of `lengths` tokens."""
    generator = torch.Generator().manual_seed(seed)
    banned = set(loaded.family.placeholder_ids)
    usable = torch.tensor([i for i in range(3, 250) if i not in banned])
    rows = []
    for length in lengths:
        ids = usable[torch.randint(len(usable), (length,), generator=generator)]
        rows.append(with_completion(prompt, ids, torch.ones(length, dtype=torch.bool)))
    return rows


def packed_of(loaded: Loaded, groups: Sequence[Sequence[Rendered]]) -> Packed:
    """All groups in one row."""
    shared = [beginning(loaded.model, loaded.family, rows) for rows in groups]
    assert all(isinstance(s, Shared) for s in shared), shared
    return pack_rows(loaded.model, loaded.family, list(zip(shared, groups, strict=True)), CPU)  # type: ignore[arg-type]


def weights_of(row: Rendered) -> torch.Tensor:
    """A number for each written token, so that every one has its own part in the loss."""
    written = int(row.sampled.sum())
    return torch.cos(torch.arange(written) * 1.7 + len(row)) + 0.3


def gradients(loaded: Loaded, rows: Sequence[Rendered], logprobs: Sequence[torch.Tensor]) -> Scores:
    """Gradients of the weighted sum of all log-probabilities."""
    loss = torch.stack(
        [(weights_of(row) * line).sum() for row, line in zip(rows, logprobs, strict=True)]
    ).sum()
    names = [(n, p) for n, p in loaded.model.named_parameters() if p.requires_grad]
    loaded.model.zero_grad(set_to_none=True)
    loss.backward()
    made = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in names}
    loaded.model.zero_grad(set_to_none=True)
    return [line.detach() for line in logprobs], made


def plain(loaded: Loaded, groups: Sequence[Sequence[Rendered]], **scoring: Any) -> Scores:
    """One row a completion, padded on the right, each with its own copy of the media; as training does it."""
    with exact_decays(loaded.model):
        return transformers_own(loaded, groups, **scoring)


def transformers_own(loaded: Loaded, groups: Sequence[Sequence[Rendered]], **scoring: Any) -> Scores:
    """The same without any of our code inside the model."""
    rows = [row for group in groups for row in group]
    batch = collate([sft_sample(row) for row in rows], 0)
    logits = loaded.model(**forward_inputs(loaded.family, batch, CPU), use_cache=False).logits[:, :-1]
    logprobs, _ = token_logprobs(logits, batch.ids[:, 1:], **scoring)
    lines = [logprobs[i, : len(row) - 1][row.sampled[1:]] for i, row in enumerate(rows)]
    return gradients(loaded, rows, lines)


def shared(
    loaded: Loaded,
    groups: Sequence[Sequence[Rendered]],
    change: Callable[[Packed], Packed] = lambda packed: packed,
    earlier: int = 1,
    **scoring: Any,
) -> Scores:
    """The prompt once; `change` may spoil what is packed, `earlier` which token predicts."""
    rows = [row for group in groups for row in group]
    packed = change(packed_of(loaded, groups))
    written = [row.sampled.nonzero().squeeze(1) for row in rows]
    before = torch.cat([p[t - earlier] for p, t in zip(packed.places, written, strict=True)])
    ids = torch.cat([row.ids[t] for row, t in zip(rows, written, strict=True)])
    with exact_decays(loaded.model), attention_of(loaded.model, packed.layout):
        hidden = hidden_states(loaded.model, loaded.family, packed, CPU)
        size = loaded.model.get_input_embeddings().num_embeddings
        logprobs, _ = hidden_logprobs(head_of(loaded.model), hidden[before], ids, size, **scoring)
        return gradients(loaded, rows, list(logprobs.split([len(t) for t in written])))


def apart(one: Scores, other: Scores) -> tuple[float, float, str]:
    """Largest difference of log-probabilities; largest relative one of a parameter's gradient, and its name.

    A gradient that is nothing but rounding (a bias that the softmax forgets) is measured against the mean one.
    """
    values = max(float((a - b).abs().max()) for a, b in zip(one[0], other[0], strict=True))
    assert one[1].keys() == other[1].keys()
    sizes = {name: float(g.double().norm()) for name, g in one[1].items()}
    floor = 1e-3 * sum(sizes.values()) / len(sizes)
    errors = {
        name: float((one[1][name] - g).double().norm()) / max(sizes[name], floor)
        for name, g in other[1].items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return values, errors[worst], worst


def moved(packed: Packed, positions: torch.Tensor) -> Packed:
    """The same at other positions."""
    return replace(packed, positions=positions)


def with_adapters(loaded: Loaded) -> Loaded:
    """The model in training with LoRA adapters that already do something."""
    config = ModelConfig(model_name_or_path="unused", use_peft=True, lora_r=4)
    learner = add_lora(loaded.model, loaded.family, config)
    for name, parameter in learner.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    learner.train()
    return replace(loaded, model=learner)
