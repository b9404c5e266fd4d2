"""The first packed rows of each kind, held against the plain forward: values and gradients.

What may differ is rounding. How much that is, the plain forward says itself: its rows once side by side and once one
by one give sums in another order. A difference well above that stops the run.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mmreason.model.encode_once import encoded_apart
from mmreason.model.family import bare
from mmreason.render import apart, question_places
from mmreason.train.micro import Plan, Sharing, build, plan
from mmreason.train.scoring import Micro, Objective, scores
from mmreason.types import TrainingSample

if TYPE_CHECKING:
    from mmreason.train.step import Trainer

log = logging.getLogger(__name__)
Kind = tuple[
    str, frozenset[str]
]  # what its tokens stand beside (group, questions, alone), and its media's names
ROWS = 2  # of one group, or of none
NOISE = 8.0  # times the plain forward's own rounding that is allowed
STREAMS = ("aggregation", "ce", "rl", "kl")
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
    """Compare some packed rows of every kind that was not compared: of groups, or of none, by the media they show.

    Two learning rows or more are taken (of a group, its own), or one of several questions: with one alone nothing
    could leak between rows. The smallest are. Kinds that come later are compared when they come. The plain forward has
    a row of its own for every question. Nothing of the run changes: no gradient is kept, no random number drawn, no
    feature remembered.

    Raises:
        ValueError: the two ways differ by more than rounding; names the first layer where they do, and its type.
    """
    with encoded_apart(trainer.model):
        for kind, some in _candidates(rows, plans, trainer.checked).items():
            _check(trainer, some, replace(objective, token_weights=None))
            trainer.checked.add(kind)


def _candidates(
    rows: Sequence[TrainingSample], plans: Sequence[Plan], checked: Container[Kind]
) -> dict[Kind, list[TrainingSample]]:
    """For each kind of packed rows, but those `checked`, the smallest ones that can tell a leak."""
    found: dict[Kind, list[TrainingSample]] = {}
    alone: list[TrainingSample] = []
    for _, chosen in (group for planned in plans for group in planned.groups):
        taught = (rows[i] for i in chosen if not rows[i].beside)
        learning = sorted((row for row in taught if bool(row.aggregation.any())), key=len)
        if not learning:
            continue
        kind = _kind(learning[0])
        if kind[0] == "alone":
            alone += learning
        elif kind not in checked and (kind[0] == "questions" or len(learning) >= ROWS):
            if kind not in found or sum(map(len, learning)) < sum(map(len, found[kind])):
                found[kind] = learning
    for kind in dict.fromkeys(map(_kind, alone)):
        if kind not in checked and len(alone) >= ROWS:
            found[kind] = _of_kind_first(alone, kind)
    return {kind: some[:ROWS] for kind, some in found.items()}


def _kind(row: TrainingSample) -> Kind:
    beside = "group" if row.group >= 0 else "alone" if row.rendered.segments is None else "questions"
    return beside, frozenset(row.rendered.media)


def _of_kind_first(rows: Sequence[TrainingSample], kind: Kind) -> list[TrainingSample]:
    """The smallest rows of the kind, then others: beside its only one, rows on other media tell a leak as well."""
    return sorted(rows, key=lambda row: (_kind(row) != kind, len(row)))


def _check(trainer: Trainer, some: Sequence[TrainingSample], objective: Objective) -> None:
    """The rows in both ways; raises ValueError where they differ by more than rounding."""
    shared, together, singly = _ways(trainer, some)
    plain, again, ours = (_outcome(trainer, way, objective) for way in (together, singly, shared))
    rounding = math.sqrt(_eps(trainer))
    band = max(NOISE * _values(plain, again), rounding)
    names = _gradients(plain, again)
    bands = {name: max(NOISE * noise, rounding) for name, noise in names.items()}
    found, errors = _values(plain, ours), _gradients(plain, ours)
    worst = max(errors, key=lambda name: errors[name] / bands[name])
    if not (found <= band and errors[worst] <= bands[worst]):
        where = _where(trainer, (together, singly, shared), objective, worst)
        raise ValueError(
            f"the shared forward of {type(bare(trainer.model)).__name__} does not give what the plain one does: "
            f"log-probabilities differ by {found:.2g} (allowed {band:.2g}), the gradient of {worst} by "
            f"{errors[worst]:.2g} (allowed {bands[worst]:.2g}); {where}; set shared_prefix: off for this model"
        )
    log.info(
        "packed rows checked on %d of them: log-probabilities within %.2g (allowed %.2g), gradients within %.2g "
        "(allowed %.2g)", len(some), found, band, errors[worst], bands[worst],
    )  # fmt: skip


def _ways(trainer: Trainer, rows: Sequence[TrainingSample]) -> tuple[list[Micro], list[Micro], list[Micro]]:
    """The rows packed, and their questions plain: in one micro-batch, and one by one."""
    (planned,) = plan(trainer.model, trainer.family, rows, sum(map(len, rows)), Sharing("require"))
    single = [question for i in planned.rows for question in _questions(rows[i])]
    everyone = list(range(len(single)))

    def built(rows: Sequence[TrainingSample], planned: Plan) -> Micro:
        device = trainer.backend.device
        return build(trainer.model, trainer.family, rows, planned, trainer.pad_id, device)

    shared, together = built(rows, planned), built(single, Plan(everyone, []))
    return [shared], [together], [built(single, Plan([i], [])) for i in everyone]


def _questions(row: TrainingSample) -> list[TrainingSample]:
    """A row for each question of the row; what the check reads of their streams is only what is learned."""
    if row.rendered.segments is None:
        return [row]
    places = question_places(row.rendered.segments)
    return [
        replace(row, rendered=rendered, **{name: getattr(row, name)[at] for name in STREAMS})
        for rendered, at in zip(apart(row.rendered), places, strict=True)
    ]


def _outcome(
    trainer: Trainer,
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
            logprobs = scored.logprobs[learned]
            number = torch.arange(len(logprobs), device=logprobs.device) + sum(map(len, values))
            loss = (logprobs * (torch.cos(1.7 * number) + 0.3)).sum()
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
    places = list(micro.packed.places)
    if micro.batch.segments is not None:
        rows = zip(places, micro.batch.segments, strict=True)
        places = [place[at] for place, row in rows for at in question_places(row[: len(place)])]
    return out[0][torch.cat(places).to(out.device)]


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
    ways: tuple[list[Micro], list[Micro], list[Micro]],
    objective: Objective,
    worst: str,
) -> str:
    """The first decoder layer whose outputs differ, or the layer of the parameter whose gradient differs most."""
    plain, again, ours = (_outcome(trainer, way, objective, layers=True).layers for way in ways)
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
