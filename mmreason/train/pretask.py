"""Perception pretask: encoders and projectors learn the dense truth of the worlds' media before any question.

Rows bring `targets` (a word for every cell and bin); the features the LLM would get are held against the embeddings of
those words (`objective/dense.py`). The LLM itself does not run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmreason.data.loader import Loader
from mmreason.data.targets import DenseTarget, dense_targets, with_targets
from mmreason.model.family import bare
from mmreason.objective.dense import resampled, word_logits, word_loss, word_vectors
from mmreason.schema import PretaskStage
from mmreason.train.context import Batch, Context
from mmreason.train.step import Objective, Trainer, update
from mmreason.types import Rendered, Sample, TrainingSample

MAX_REDRAWS = 100


@dataclass(frozen=True)
class Seen:
    """One rendered row and its dense truth. Example: `Seen(rendered, ("image",), targets)`."""

    rendered: Rendered
    kinds: tuple[str, ...]  # of the row's media, in order
    targets: tuple[DenseTarget, ...]


class Pretask:
    """The `pretask` method. State: the loader."""

    def __init__(self, context: Context, stage: PretaskStage) -> None:
        if context.family.name != "assembled":
            raise ValueError(
                f"stage {stage.name}: pretask reads the features of an assembled model; this one is "
                f"{context.family.name}: start from model.assemble, or leave the stage out"
            )
        if context.backend.world_size > 1:
            raise ValueError(
                f"stage {stage.name}: pretask runs in one process, got {context.backend.world_size}; make the base "
                "model in one process and train on from its folder"
            )
        self.context = context
        self.stage = stage
        rows = {name: with_targets(context.sources[name]) for name in stage.data}
        bare_sources = sorted(name for name, found in rows.items() if not found)
        if bare_sources:
            raise ValueError(
                f"stage {stage.name}: the sources {bare_sources} hold no row with `targets`; give worlds made by "
                "`mmreason data make`, or rows with dense truth of your own"
            )
        # read at once: what is wrong shows before the first step
        self._targets = {(s.source, s.id): dense_targets(s) for found in rows.values() for s in found}
        known = {target.name for targets in self._targets.values() for target in targets}
        if missing := sorted(set(stage.targets) - known):
            raise ValueError(f"stage {stage.name}: no row has the targets {missing}; there are {sorted(known)}")
        self.loader = Loader(rows, stage.data, {}, seed=context.recipe.seed)
        self._words: dict[tuple[str, ...], list[list[int]]] = {}

    def collect(self, progress: float, step: int) -> Batch:
        """The rows of one optimizer step; a quarantined row is replaced by the next one."""
        wanted = self.stage.per_device_train_batch_size * self.stage.gradient_accumulation_steps
        seen: list[Seen] = []
        for _ in range(MAX_REDRAWS):
            if len(seen) == wanted:
                break
            for sample in self.loader.next(wanted - len(seen)):
                rendered = self.context.feed.prompt(sample, self.stage)
                if rendered is not None:
                    seen.append(self._seen(sample, rendered))
        else:
            raise ValueError(
                f"stage {self.stage.name}: no readable rows in {MAX_REDRAWS} draws; see quarantine.jsonl"
            )
        return Batch(
            [], Objective(), {"epoch": self.loader.epoch}, learn=lambda t, p: self._learn(seen, t, p)
        )

    def _seen(self, sample: Sample, rendered: Rendered) -> Seen:
        kinds = tuple(ref.kind for ref in sample.media)
        wanted = self.stage.targets
        targets = self._targets[sample.source, sample.id]
        return Seen(rendered, kinds, tuple(t for t in targets if not wanted or t.name in wanted))

    def _learn(self, seen: Sequence[Seen], trainer: Trainer, progress: float) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy over every label of every medium."""
        size = self.stage.per_device_train_batch_size
        trainer.model.train()
        loss_sum, counts = 0.0, defaultdict[str, Counter[str]](Counter)
        for first in range(0, len(seen), size):
            batch = seen[first : first + size]
            loss, asked = torch.zeros((), device=trainer.backend.device), 0
            for name, logits, labels in self._logits(batch, trainer):
                part, numbers = word_loss(logits, labels)
                loss, asked = loss + part, asked + numbers["asked"]
                counts[name].update(numbers)
            mean = loss / max(asked, 1) * len(batch) / len(seen)
            trainer.backend.backward(mean)
            loss_sum += float(mean.detach())
        metrics = {"loss": loss_sum, "rows": float(len(seen))}
        for name, c in counts.items():
            metrics[f"pretask/{name}/accuracy"] = c["right"] / max(c["asked"], 1)
            metrics[f"pretask/{name}/accuracy_things"] = c["things_right"] / max(c["things"], 1)
        return metrics | update(trainer, progress)

    def _logits(
        self, batch: Sequence[Seen], trainer: Trainer
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Per target name: logits [N, W] and labels [N] of every feature that the target speaks of."""
        model = bare(trainer.model)
        device = trainer.backend.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=trainer.bf16):
            per_row = media_features(model, [row.rendered.media for row in batch], device)
        found: dict[tuple[str, tuple[str, ...]], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for row, features in zip(batch, per_row, strict=True):
            media = by_medium(features, row.kinds)
            for target in row.targets:
                labels = torch.tensor(target.labels).view(*target.grid)
                for part in grids(media[target.medium], row.kinds[target.medium], model.config):
                    asked = resampled(labels, part.shape[:3]).flatten().to(device)
                    found[target.name, target.words].append((part.flatten(0, 2), asked))
        table = model.get_input_embeddings().weight
        for (name, words), parts in found.items():
            logits = word_logits(
                torch.cat([part for part, _ in parts]).float(), word_vectors(table, self._tokens(words))
            )
            yield name, logits, torch.cat([asked for _, asked in parts])

    def _tokens(self, words: tuple[str, ...]) -> list[list[int]]:
        """Each word's tokens as it begins a line and as it stands inside one, blanks left out: both learn its look."""
        if words not in self._words:
            tokenizer = self.context.processor.tokenizer
            forms = [tokenizer([w, " " + w], add_special_tokens=False).input_ids for w in words]
            self._words[words] = [
                sorted({i for ids in pair for i in ids if tokenizer.decode([i]).strip()}) for pair in forms
            ]
        return self._words[words]

    def buffered(self) -> list[TrainingSample]:
        """Nothing: rows are made again from the loader's state."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any], rows: list[TrainingSample]) -> None:
        self.loader.load_state_dict(state["loader"])


def media_features(
    model: Any, rows: Sequence[Mapping[str, torch.Tensor]], device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Every row's features by kind, [n, T, H] each, computed for the whole batch at once."""
    names = sorted({name for media in rows for name in media})
    inputs = {n: torch.cat([media[n] for media in rows if n in media]).to(device) for n in names}
    audio = [inputs.get(n) for n in model.config.audio_names]
    features = model.encode(inputs.get("pixel_values"), inputs.get("pixel_values_videos"), audio)
    first = {"image": "pixel_values", "video": "pixel_values_videos", "audio": "input_features_0"}
    out: list[dict[str, torch.Tensor]] = [{} for _ in rows]
    for kind, tensor in features.items():
        given = [len(media[first[kind]]) if first[kind] in media else 0 for media in rows]
        counts = [count * len(tensor) // sum(given) for count in given]  # frames may have been merged
        for row, part in zip(out, tensor.split(counts), strict=True):
            if len(part):
                row[kind] = part
    return out


def by_medium(features: Mapping[str, torch.Tensor], kinds: Sequence[str]) -> list[torch.Tensor]:
    """A row's features, medium by medium: [1, T, H] for a picture or a clip of sound, [F, T, H] for F frames."""
    parts = {kind: iter(tensor.split(len(tensor) // kinds.count(kind))) for kind, tensor in features.items()}
    return [next(parts[kind]) for kind in kinds]


def grids(features: torch.Tensor, kind: str, config: Any) -> list[torch.Tensor]:
    """A medium's features [n, T, H] on their grids [time, rows, columns, H]: one, or one per audio encoder."""
    if kind == "audio":
        return [part[0, :, None, None] for part in features.split(config.audio_tokens, dim=1)]
    side = math.isqrt(features.shape[1])
    return [features.view(len(features), side, side, -1)]
