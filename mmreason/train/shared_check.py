"""The first group of each kind that shares its prompt, held against the plain forward: values and gradients.

What may differ is rounding. How much that is, the plain forward says itself: its rows once side by side and once one
by one give sums in another order. A difference well above that stops the run.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mmreason.model.family import bare
from mmreason.model.shared_fit import Unfit
from mmreason.model.shared_rows import beginning
from mmreason.train.micro import Plan, build
from mmreason.train.scoring import Micro, Objective, scores
from mmreason.types import TrainingSample

if TYPE_CHECKING:
    from mmreason.train.step import Trainer

log = logging.getLogger(__name__)
ROWS = 2  # of one group
NOISE = 8.0  # times the plain forward's own rounding that is allowed
ENTRIES = 65536  # of each parameter's gradient that are compared, evenly spaced


@dataclass(frozen=True)
class _Outcome:
    """What one way of computing the rows gave."""

    logprobs: torch.Tensor  # float64 [N], row after row
    gradients: dict[str, torch.Tensor]  # parameter -> some of its gradient's entries, float32
    layers: list[
        torch.Tensor
    ]  # each decoder layer's output, row after row, [tokens, hidden]; where asked for


def check_shared(
    trainer: Trainer, rows: Sequence[TrainingSample], plans: Sequence[Plan], objective: Objective
) -> None:
    """Compare ROWS rows of one group for every set of media that a prompt of `plans` shows and that was not compared.

    The smallest group with two learning rows or more is taken: with one alone nothing could leak between rows. Sets
    of media that come later are compared when they come. Nothing of the run changes: no gradient is kept, no random
    number drawn.

    Raises:
        ValueError: the two ways differ by more than rounding; names the first layer where they do, and its type.
    """
    smallest: dict[frozenset[str], list[TrainingSample]] = {}
    for planned in plans:
        for shared, chosen in planned.groups:
            names = frozenset(shared.media)
            learning = [rows[i] for i in chosen if bool(rows[i].aggregation.any())]
            if names in trainer.checked or len(learning) < ROWS:
                continue
            if names not in smallest or sum(map(len, learning)) < sum(map(len, smallest[names])):
                smallest[names] = learning
    for names, group in smallest.items():
        _check_group(trainer, sorted(group, key=len)[:ROWS], replace(objective, token_weights=None))
        trainer.checked.add(names)


def _check_group(trainer: Trainer, some: Sequence[TrainingSample], objective: Objective) -> None:
    """The rows of one group in both ways; raises ValueError where they differ by more than rounding."""
    together, shared = _planned(trainer, some)
    plain = _outcome(trainer, some, together, objective)
    apart = [_plain(trainer, some, [i]) for i in range(len(some))]
    again = _outcome(trainer, some, apart, objective)
    ours = _outcome(trainer, some, shared, objective)
    rounding = math.sqrt(_eps(trainer))
    band = max(NOISE * _values(plain, again), rounding)
    names = _gradients(plain, again)
    bands = {name: max(NOISE * noise, rounding) for name, noise in names.items()}
    found, errors = _values(plain, ours), _gradients(plain, ours)
    worst = max(errors, key=lambda name: errors[name] / bands[name])
    if not (found <= band and errors[worst] <= bands[worst]):
        where = _where(trainer, some, (together, apart, shared), objective, worst)
        raise ValueError(
            f"the shared forward of {type(bare(trainer.model)).__name__} does not give what the plain one does: "
            f"log-probabilities differ by {found:.2g} (allowed {band:.2g}), the gradient of {worst} by "
            f"{errors[worst]:.2g} (allowed {bands[worst]:.2g}); {where}; set shared_prefix: off for this model"
        )
    log.info(
        "shared prompts checked on %d rows: log-probabilities within %.2g (allowed %.2g), gradients within %.2g "
        "(allowed %.2g)", len(some), found, band, errors[worst], bands[worst],
    )  # fmt: skip


def _plain(trainer: Trainer, rows: Sequence[TrainingSample], chosen: list[int]) -> Micro:
    device = trainer.backend.device
    return build(trainer.model, trainer.family, rows, Plan(chosen, []), trainer.pad_id, device)


def _planned(trainer: Trainer, rows: Sequence[TrainingSample]) -> tuple[list[Micro], list[Micro]]:
    """The rows in one plain micro-batch, and with a shared prompt."""
    everyone = list(range(len(rows)))
    found = beginning(trainer.model, trainer.family, [row.rendered for row in rows])
    assert not isinstance(found, Unfit), found  # these rows were planned to share
    planned = Plan(everyone, [(found, everyone)])
    device = trainer.backend.device
    shared = build(trainer.model, trainer.family, rows, planned, trainer.pad_id, device)
    return [_plain(trainer, rows, everyone)], [shared]


def _outcome(
    trainer: Trainer,
    rows: Sequence[TrainingSample],
    micros: Sequence[Micro],
    objective: Objective,
    layers: bool = False,
) -> _Outcome:
    """Log-probabilities of the learned tokens, and the gradient of their sum under uneven weights."""
    named = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    values: list[torch.Tensor] = []
    sampled: dict[str, torch.Tensor] = {}
    outputs: list[list[torch.Tensor]] = []
    for micro in micros:
        with ExitStack() as stack:
            stack.enter_context(micro.attention(trainer.model))
            seen = _watch(stack, trainer.model) if layers else []
            scored = scores(trainer.model, trainer, micro, objective)
            learned = micro.batch.aggregation[:, scored.first :].to(scored.logprobs.device) > 0
            column = learned.nonzero()[:, 1]
            logprobs = scored.logprobs[learned]
            loss = (logprobs * (torch.cos(1.7 * column) + 0.3)).sum()
            grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        values.append(logprobs.detach().double().cpu())
        for (name, _), grad in zip(named, grads, strict=True):
            if grad is not None:
                part = grad.flatten()[:: -(-grad.numel() // ENTRIES)].float().cpu()
                sampled[name] = sampled[name] + part if name in sampled else part
        outputs.append([_real_tokens(micro, out) for out in seen])
    joined = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return _Outcome(torch.cat(values), sampled, joined)


def _watch(stack: ExitStack, model: Any) -> list[torch.Tensor]:
    """What each decoder layer gives in the forward pass, in order."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out).detach())

    for layer in bare(model).get_decoder().layers:
        stack.callback(layer.register_forward_hook(keep).remove)
    return seen


def _real_tokens(micro: Micro, out: torch.Tensor) -> torch.Tensor:
    """A layer's output for every token of every row, one after the other: [tokens, hidden]."""
    if micro.packed is None:
        return out[micro.batch.attention_mask.bool().to(out.device)]
    return out[0][torch.cat(micro.packed.places).to(out.device)]


def _values(one: _Outcome, other: _Outcome) -> float:
    """Root mean square difference of log-probabilities."""
    return float((one.logprobs - other.logprobs).pow(2).mean().sqrt())


def _gradients(one: _Outcome, other: _Outcome) -> dict[str, float]:
    """Relative difference of each parameter's gradient; one that is next to nothing is held against the mean one."""
    names = sorted({*one.gradients, *other.gradients})
    zero = torch.zeros(())
    sizes = {name: float(one.gradients.get(name, zero).norm()) for name in names}
    floor = max(1e-3 * sum(sizes.values()) / max(len(sizes), 1), 1e-30)
    return {
        name: float((one.gradients.get(name, zero) - other.gradients.get(name, zero)).norm())
        / max(sizes[name], floor)
        for name in names
    }


def _eps(trainer: Trainer) -> float:
    """The relative rounding of the numbers that the forward pass works with."""
    dtype = torch.bfloat16 if trainer.bf16 else next(iter(trainer.model.parameters())).dtype
    return torch.finfo(dtype).eps


def _where(
    trainer: Trainer,
    rows: Sequence[TrainingSample],
    ways: tuple[list[Micro], list[Micro], list[Micro]],
    objective: Objective,
    worst: str,
) -> str:
    """The first decoder layer whose outputs differ, or the layer of the parameter whose gradient differs most."""
    plain, again, ours = (_outcome(trainer, rows, way, objective, layers=True).layers for way in ways)
    decoder = bare(trainer.model).get_decoder()
    kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"] * len(plain)

    def called(number: int) -> str:
        return f"layer {number} ({kinds[number]}, {type(decoder.layers[number]).__name__})"

    def largest(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(((one - other).norm(dim=-1) / one.norm(dim=-1)).max())

    for number, (one, twin, found) in enumerate(zip(plain, again, ours, strict=True)):
        if largest(one, found) > NOISE * max(largest(one, twin), _eps(trainer)):
            return f"the first layer to differ is {called(number)}"
    match = re.search(r"layers\.(\d+)\.", worst)
    if match and trainer.family.part_of(worst) == "llm":
        return f"values agree, gradients do not, most of all in {called(int(match[1]))}"
    return f"values agree, gradients do not, most of all in the {trainer.family.part_of(worst)}"
