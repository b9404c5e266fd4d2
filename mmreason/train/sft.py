"""Supervised fine-tuning: rows from the loader, targets built from rationales, loss on assistant tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from mmreason.data.loader import Loader
from mmreason.data.transforms import by_media, supervised
from mmreason.model.shared_fit import needs_side_by_side, unpackable
from mmreason.objective import sft_sample
from mmreason.render import side_by_side
from mmreason.schema import SFTStage
from mmreason.train.context import Batch, Context
from mmreason.train.deal import Dealer
from mmreason.train.step import Objective
from mmreason.types import Sample, TrainingSample

MAX_REDRAWS = 100


class SFT:
    """The `sft` method. State: the loader, and what the dealer has seen."""

    def __init__(self, context: Context, stage: SFTStage) -> None:
        self.context = context
        self.stage = stage
        if stage.questions_per_row > 1:
            recipe = context.recipe
            unfit = unpackable(context.model, recipe.shared_prefix, context.backend.gathers)
            needs_side_by_side(context.model, context.family.name, recipe.model.attn_implementation, unfit)
        targets = {name: self._targets(context.sources[name]) for name in stage.sources()}
        self.loader = Loader(targets, stage.data, stage.replay, seed=context.recipe.seed)
        self.dealer = Dealer(context.backend)

    def _targets(self, samples: Sequence[Sample]) -> list[tuple[Sample, ...]]:
        """The samples with the turns that are learned, those that share a row together."""
        stage = self.stage
        seed = self.context.recipe.seed
        full = [supervised(sample, stage.rationale, stage.thought_dropout, seed) for sample in samples]
        return by_media(full, stage.questions_per_row)

    def collect(self, progress: float, step: int) -> Batch:
        """Rows of one optimizer step. A quarantined row is replaced by the next one of the loader."""
        backend = self.context.backend
        per_rank = self.stage.per_device_train_batch_size * self.stage.gradient_accumulation_steps
        rows: list[TrainingSample] = []
        read: list[tuple[tuple[Sample, ...], int]] = []
        for _ in range(MAX_REDRAWS):
            missing = backend.max(per_rank - len(rows))
            if missing <= 0:
                break
            drawn = self.dealer.mine(self.loader.next(missing * backend.world_size))
            self.context.feed.ahead(partial(chain.from_iterable, drawn), self.stage)
            for group in drawn:
                rendered = [self.context.feed.full(sample, self.stage) for sample in group]
                readable = [row for row in rendered if row is not None]
                if readable and len(rows) < per_rank:
                    rows.append(sft_sample(side_by_side(readable)))
                    read.append((group, len(rows[-1])))
        else:
            raise ValueError(
                f"stage {self.stage.name}: no readable rows in {MAX_REDRAWS} draws; see quarantine.jsonl"
            )
        self.dealer.observe(read)
        coming = per_rank * backend.world_size
        self.context.feed.ahead(
            lambda: chain.from_iterable(self.dealer.mine(self.loader.peek(coming))), self.stage
        )
        return Batch(rows, Objective(), {"epoch": self.loader.epoch})

    def buffered(self) -> list[TrainingSample]:
        """Nothing: rows are made again from the loader's state."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self.loader.state_dict(), "dealer": self.dealer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        self.loader.load_state_dict(state["loader"])
        self.dealer.load_state_dict(state.get("dealer"))
