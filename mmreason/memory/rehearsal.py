"""The moments of a step that need most, gone through by the run's own code on tensors without contents.

Nothing is computed: weights, features and activations have shapes and types only; ids, masks and positions, which
decide what is computed, are real.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmreason.memory.live import LiveBytes
from mmreason.model.family import Family, bare, media_inputs
from mmreason.model.load import Loaded, gradient_checkpointing
from mmreason.model.parts import add_lora
from mmreason.model.shared_fit import unshareable
from mmreason.objective import sft_sample, tw_grpo
from mmreason.render import side_by_side, with_completion
from mmreason.rollout import forked
from mmreason.rollout.budget import Share, held, in_batches, kept_by
from mmreason.rollout.generate import concat_media, left_pad
from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import GRPOStage, ModelConfig, Recipe, SFTStage, StageConfig
from mmreason.train.distributed import Backend
from mmreason.train.micro import Plan, Sharing, build, plan
from mmreason.train.offload import Moved, offloaded
from mmreason.train.scoring import Objective, scores
from mmreason.train.step import Trainer
from mmreason.types import Rendered, TrainingSample

DRAWN = 16  # bytes for each row and word while a token is drawn: the policy, its weights, their float64 sums
NARROWED = 25  # and where top_k, top_p or min_p sort them


@dataclass(frozen=True)
class Stand:
    """A model whose weights are fake, and what its rows need.

    Example: `stand_in(loaded, recipe.model, pad_id=0, banned=(7, 8))`.
    """

    model: Any
    family: Family
    pad_id: int
    banned: tuple[int, ...]
    mode: FakeTensorMode

    def weights(self) -> list[torch.Tensor]:
        """Parameters and buffers."""
        return [*self.model.parameters(), *self.model.buffers()]

    def learning(self) -> list[torch.Tensor]:
        """Parameters that learn."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def row(self, rendered: Rendered) -> Rendered:
        """The row with media that have no contents; what decides shapes (grids, masks, orders) stays."""
        media = {
            name: self.mode.from_tensor(x) if x.is_floating_point() and x.ndim > 1 else x
            for name, x in rendered.media.items()
        }
        return replace(rendered, media=media)


def stand_in(loaded: Loaded, cfg: ModelConfig, pad_id: int, banned: Sequence[int]) -> Stand:
    """A copy of the model without its weights' contents: it costs its modules' memory only.

    Where `cfg` asks for another type of weights, or for adapters, than the model was loaded with, the copy has them.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = getattr(torch, cfg.torch_dtype)
    model: Any = loaded.model
    if cfg.use_peft and not isinstance(model, PeftModel):
        model = add_lora(_emptied(model, dtype, "meta"), loaded.family, cfg)
    with mode:
        model = _emptied(model, dtype, "cpu")
    return Stand(model, loaded.family, pad_id, tuple(banned), mode)


def _emptied(model: Any, dtype: torch.dtype, device: str) -> Any:
    """A copy with weights of the same shapes, of type `dtype`; buffers, which few are, keep theirs."""
    memo: dict[int, Any] = {id(t): torch.empty_like(t, device=device) for t in model.buffers()}
    for old in model.parameters():
        new = torch.empty_like(old, dtype=dtype, device=device)
        memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
    return copy.deepcopy(model, memo)


def training_rows(
    stand: Stand, stage: StageConfig, longest: Rendered, prompts: int, own: int
) -> list[TrainingSample]:
    """A step's rows: `prompts` times the longest prompt with `own` completions, written full; of SFT, its longest row.

    Token weights compare all completions of a group, whoever wrote them.
    """
    shown = stand.row(longest)
    if isinstance(stage, GRPOStage):
        ids = torch.full((stage.max_completion_length,), stand.pad_id)
        full = with_completion(shown, ids, torch.ones_like(ids, dtype=torch.bool))
        one = sft_sample(full)
        beside = own if stage.token_weight.name == "none" else stage.num_generations
        return [replace(one, group=g) for g in range(prompts) for _ in range(beside)]
    assert isinstance(stage, SFTStage)
    return [sft_sample(side_by_side([shown] * stage.questions_per_row))] * prompts


def training_peak(
    stand: Stand,
    recipe: Recipe,
    stage: StageConfig,
    rows: Sequence[TrainingSample],
    *,
    gathers: bool,
    spread: bool,
) -> tuple[int, int, int]:
    """Bytes without the weights: of a step's largest micro-batch; of the first step's check (0: there is none); and of
    activations in the CPU's memory meanwhile.

    `spread`: gradients lie elsewhere than beside their parameters, and those are not counted.
    """
    trainer = _trainer(stand, recipe, stage, gathers)
    objective = _objective(stand, stage)
    plans = plan(trainer.model, trainer.family, rows, trainer.max_tokens, trainer.sharing)
    largest = max(plans, key=lambda p: sum(len(rows[i]) for i in p.rows))
    with _counted(stand) as live:
        before = live.now
        checked = _check(trainer, rows, largest, objective, live)
        if spread or len(plans) > 1:  # the other micro-batches' gradients are there already
            for parameter in stand.learning():
                parameter.grad = torch.empty_like(parameter)
        if spread:
            before = live.now
        live.again()
        away = _backward(trainer, rows, largest, objective)
        step = live.peak - before
    for parameter in stand.learning():
        parameter.grad = None
    return step, checked, away


@torch.no_grad()
def rollout_peak(
    stand: Stand,
    recipe: Recipe,
    prompt: Rendered,
    prompts: int,
    count: int,
    params: SamplingParams,
    *,
    apart: bool = False,
) -> tuple[int, int]:
    """Bytes of a rollout's largest moment, the weights among them; and those of its keys and values.

    `apart`: each module's weights are gathered as it runs, which no prompt is shared under.
    """
    shared = recipe.shared_prefix != "off" and not apart and unshareable(stand.model) is None
    batches: list[list[Share]] = []

    def take(batch: list[Share]) -> None:
        batches.append(batch)

    lengths = [len(prompt)] * prompts
    in_batches(stand.model, lengths, count, params, take, shared=shared)
    model = bare(stand.model).eval()
    kept = kept_by(model)
    sizes = [held(kept, batch, lengths, params, shared) for batch in batches]
    largest = batches[sizes.index(max(sizes))]
    shown = stand.row(prompt)
    rows = sum(map(len, largest))
    draw = DRAWN + (NARROWED if params.top_k or params.top_p < 1 or params.min_p else 0)
    with _counted(stand) as live:
        if shared:
            owner = torch.arange(len(largest)).repeat_interleave(torch.tensor([len(s) for s in largest]))
            same = [shown] * len(largest)
            logits = forked.largest_moments(
                model, stand.family, stand.pad_id, same, owner, params.max_new_tokens
            )
        else:
            logits = _plain_prefill(stand, [shown] * rows)
        drawing = live.now + logits.numel() * draw
    del logits
    return max(live.peak, drawing), max(sizes)


def feature_bytes(stand: Stand, row: Rendered) -> int:
    """Bytes of what the encoders make of a row's media, as the LLM is given it."""
    shown = sum(int(row.ids.eq(token).sum()) for token in stand.family.placeholders.values())
    table = bare(stand.model).get_input_embeddings().weight
    return shown * int(table.shape[1]) * table.element_size()


def _plain_prefill(stand: Stand, rows: Sequence[Rendered]) -> torch.Tensor:
    """The prefill of every row by itself, its keys held while the logits are made."""
    ids, mask, token_types = left_pad(rows, stand.pad_id)
    inputs = media_inputs(stand.family, concat_media(rows), token_types)
    out = stand.model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **inputs)
    return out.logits[:, -1]


@contextmanager
def _counted(stand: Stand) -> Iterator[LiveBytes]:
    """Every tensor is counted, the weights from the beginning."""
    with LiveBytes() as live:
        live.hold(stand.weights())
        live.again()
        yield live


def _trainer(stand: Stand, recipe: Recipe, stage: StageConfig, gathers: bool) -> Trainer:
    gradient_checkpointing(stand.model, stage.gradient_checkpointing)
    stand.model.train()
    return Trainer(
        model=stand.model,
        family=stand.family,
        backend=Backend(torch.device("cpu")),
        optimizer=torch.optim.SGD(stand.learning(), lr=0.0),
        schedule=lambda progress: 1.0,
        pad_id=stand.pad_id,
        max_grad_norm=1.0,
        max_tokens=stage.max_tokens_per_micro_batch,
        bf16=recipe.bf16,
        sharing=Sharing("off" if gathers else recipe.shared_prefix),
        check=recipe.shared_prefix_check,
        offload=stage.activation_offload,
    )


def _objective(stand: Stand, stage: StageConfig) -> Objective:
    if not isinstance(stage, GRPOStage):
        return Objective()
    weights = None
    if stage.token_weight.name == "tw_grpo":
        weights = tw_grpo(stage.token_weight.alpha_max, stage.token_weight.form)
    return Objective(banned=stand.banned, temperature=stage.temperature, token_weights=weights)


def _backward(trainer: Trainer, rows: Sequence[TrainingSample], planned: Plan, objective: Objective) -> int:
    """Forward and backward pass; returns the bytes of activations that were elsewhere meanwhile."""
    device = trainer.backend.device
    micro = build(trainer.model, trainer.family, rows, planned, trainer.pad_id, device)
    # what goes leaves nothing here but its shape
    kept = offloaded(
        trainer.model, lambda x: (x.new_empty(()), x.shape), lambda kept: kept[0].new_empty(kept[1])
    )
    with micro.attention(trainer.model), kept if trainer.offload else nullcontext(Moved()) as moved:
        trainer.backend.backward(_loss(trainer, micro, objective))
    return moved.total


def _loss(trainer: Trainer, micro: Any, objective: Objective) -> torch.Tensor:
    """A loss of the size that the step's has: what it multiplies log-probabilities with is small."""
    scored = scores(trainer.wrapped, trainer, micro, objective)
    weights = micro.batch.aggregation[:, scored.first :]
    return -(scored.logprobs * (weights if scored.weights is None else weights * scored.weights)).sum()


def _check(
    trainer: Trainer,
    rows: Sequence[TrainingSample],
    planned: Plan,
    objective: Objective,
    live: LiveBytes,
) -> int:
    """What `check_shared` does first takes: two rows in the plain way, and gradients beside the parameters'."""
    if (
        not trainer.check
        or not planned.groups
        or len(planned.rows) < 2
        or rows[0].rendered.segments is not None
    ):
        return 0
    live.again()
    before = live.now
    device = trainer.backend.device
    some = [rows[i] for i in planned.rows[:2]]
    micro = build(trainer.model, trainer.family, some, Plan([0, 1], []), trainer.pad_id, device)
    learning = [p for p in trainer.model.parameters() if p.requires_grad]
    loss = _loss(trainer, micro, replace(objective, token_weights=None))
    torch.autograd.grad(loss, learning, allow_unused=True)
    return live.peak - before
