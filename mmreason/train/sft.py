"""Supervised fine-tuning: rows from the loader, targets built from rationales, loss on assistant tokens."""

from __future__ import annotations

from typing import Any

from mmreason.data.loader import Loader
from mmreason.objective import sft_sample
from mmreason.schema import SFTStage
from mmreason.train.context import Batch, Context
from mmreason.train.distributed import shard
from mmreason.train.step import Objective
from mmreason.types import TrainingSample

MAX_REDRAWS = 100


class SFT:
    """The `sft` method. State: the loader."""

    def __init__(self, context: Context, stage: SFTStage) -> None:
        self.context = context
        self.stage = stage
        self.seed = context.recipe.seed
        self.loader = Loader(context.sources, stage.data, stage.replay, seed=self.seed)

    def collect(self, progress: float, step: int) -> Batch:
        """Rows of one optimizer step. A quarantined row is replaced by the next one of the loader."""
        backend = self.context.backend
        per_rank = self.stage.per_device_train_batch_size * self.stage.gradient_accumulation_steps
        rows: list[TrainingSample] = []
        for _ in range(MAX_REDRAWS):
            missing = backend.max(per_rank - len(rows))
            if missing <= 0:
                break
            for sample in shard(self.loader.next(missing * backend.world_size), backend):
                rendered = self.context.feed.supervised(sample, self.stage, self.seed)
                if rendered is not None and len(rows) < per_rank:
                    rows.append(sft_sample(rendered))
        else:
            raise ValueError(
                f"stage {self.stage.name}: no readable rows in {MAX_REDRAWS} draws; see quarantine.jsonl"
            )
        return Batch(rows, Objective(), {"epoch": self.loader.epoch})

    def buffered(self) -> list[TrainingSample]:
        """Nothing: rows are made again from the loader's state."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        self.loader.load_state_dict(state["loader"])
