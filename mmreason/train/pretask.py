"""Perception pretask: encoders and projectors learn the dense truth of the worlds' media before any question.

Rows bring `targets` (a word for every cell and bin); the features the LLM would get are held against the embeddings of
those words (`objective/dense.py`). The LLM itself does not run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mmreason.data.loader import Loader
from mmreason.data.targets import DenseTarget, dense_targets, with_targets
from mmreason.model.family import bare
from mmreason.objective.dense import labels_at, word_logits, word_loss, word_vectors
from mmreason.schema import PretaskStage
from mmreason.train.context import Batch, Context
from mmreason.train.distributed import shard
from mmreason.train.step import Objective, Trainer, update
from mmreason.types import Rendered, Sample, TrainingSample

MAX_REDRAWS = 100
Truth = tuple[Sample, tuple[DenseTarget, ...]]  # a row and those of its targets that are learned


@dataclass(frozen=True)
class Seen:
    """One rendered row and its dense truth. Example: `Seen(rendered, ("image",), targets)`."""

    rendered: Rendered
    kinds: tuple[str, ...]  # of the row's media, in order
    targets: tuple[DenseTarget, ...]


class Pretask:
    """The `pretask` method. State: the loader."""

    def __init__(self, context: Context, stage: PretaskStage) -> None:
        needs_assembled(stage, context.family.name)
        self.context = context
        self.stage = stage
        # read at once: what is wrong shows before the first step
        truth = {name: wanted_targets(stage, context.sources[name]) for name in stage.data}
        if problem := truth_problem(stage, truth, context.sources):
            raise ValueError(f"stage {stage.name}: {problem}")
        rows = {name: [sample for sample, _ in found] for name, found in truth.items()}
        self._targets = {(s.source, s.id): targets for found in truth.values() for s, targets in found}
        self.loader = Loader(rows, stage.data, {}, seed=context.recipe.seed)
        self._words: dict[tuple[str, ...], list[list[int]]] = {}

    def collect(self, progress: float, step: int) -> Batch:
        """The rows of one optimizer step; a quarantined row is replaced by the next one."""
        backend = self.context.backend
        per_rank = self.stage.per_device_train_batch_size * self.stage.gradient_accumulation_steps
        seen: list[Seen] = []
        for _ in range(MAX_REDRAWS):
            missing = backend.max(per_rank - len(seen))
            if missing <= 0:
                break
            drawn = shard(self.loader.next(missing * backend.world_size), backend)
            self.context.feed.ahead(partial(list, drawn), self.stage)
            for sample in drawn:
                rendered = self.context.feed.prompt(sample, self.stage)
                if rendered is not None and len(seen) < per_rank:
                    seen.append(self._seen(sample, rendered))
        else:
            raise ValueError(
                f"stage {self.stage.name}: no readable rows in {MAX_REDRAWS} draws; see quarantine.jsonl"
            )
        coming = per_rank * backend.world_size
        self.context.feed.ahead(lambda: shard(self.loader.peek(coming), backend), self.stage)
        return Batch(
            [], Objective(), {"epoch": self.loader.epoch}, learn=lambda t, p: self._learn(seen, t, p)
        )

    def _seen(self, sample: Sample, rendered: Rendered) -> Seen:
        kinds = tuple(ref.kind for ref in sample.media)
        return Seen(rendered, kinds, self._targets[sample.source, sample.id])

    def _learn(self, seen: Sequence[Seen], trainer: Trainer, progress: float) -> dict[str, float]:
        """One optimizer step on the mean cross-entropy over every label of every medium of every rank.

        How many labels there are is known after the last forward, so the gradients are divided and not the losses.
        """
        size = self.stage.per_device_train_batch_size
        trainer.model.train()
        loss_sum, counts = 0.0, defaultdict[str, Counter[str]](Counter)
        for first in range(0, len(seen), size):
            batch = seen[first : first + size]
            loss = torch.zeros((), device=trainer.backend.device)
            for name, logits, labels in self._logits(batch, trainer):
                part, numbers = word_loss(logits, labels)
                loss = loss + part
                counts[name].update(numbers)
            loss.backward()  # the wrapped model has not run: no engine sums these gradients
            loss_sum += float(loss.detach())
        trainer.backend.sum_gradients(trainer.model)
        counts = _together(trainer.backend.gather(counts))
        asked = max(sum(c["asked"] for c in counts.values()), 1)
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad /= asked
        rows = trainer.backend.sum(len(seen))
        metrics = {"loss": trainer.backend.sum(loss_sum) / asked, "rows": rows}
        for name, c in sorted(counts.items()):
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
                kind, times = row.kinds[target.medium], row.rendered.media.get("video_times")
                for part, moments in grids(media[target.medium], kind, times, model.config):
                    asked = labels_at(labels, target.seconds, moments, part.shape[1:3]).flatten().to(device)
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


def _together(of_ranks: Sequence[Mapping[str, Counter[str]]]) -> defaultdict[str, Counter[str]]:
    """What every rank has counted, by target."""
    total = defaultdict[str, Counter[str]](Counter)
    for counts in of_ranks:
        for name, numbers in counts.items():
            total[name].update(numbers)
    return total


def needs_assembled(stage: PretaskStage, family: str) -> None:
    """Refuse a model whose features are not at hand.

    Raises:
        ValueError: the model is not assembled.
    """
    if family != "assembled":
        raise ValueError(
            f"stage {stage.name}: pretask reads the features of an assembled model; this one is {family}: start from "
            "model.assemble, or leave the stage out"
        )


def wanted_targets(stage: PretaskStage, samples: Sequence[Sample]) -> list[Truth]:
    """The rows that have targets which the stage learns, with these targets.

    Raises:
        ValueError: naming the row whose targets are wrong.
    """
    found = []
    for sample in with_targets(samples):
        targets = tuple(t for t in dense_targets(sample) if not stage.targets or t.name in stage.targets)
        if targets:
            found.append((sample, targets))
    return found


def truth_problem(
    stage: PretaskStage, truth: Mapping[str, Sequence[Truth]], sources: Mapping[str, Sequence[Sample]]
) -> str | None:
    """Why the targets that a stage learns are not to be found in its sources; None when all are."""
    rows = [sample for name in truth for sample in with_targets(sources[name])]
    known = {target.name for sample in rows for target in dense_targets(sample)}
    if missing := sorted(set(stage.targets) - known):
        return f"targets: no row has {missing}; there are {sorted(known)}"
    if empty := sorted(name for name, found in truth.items() if not found):
        which = f"the `targets` {stage.targets}" if stage.targets else "`targets`"
        return (
            f"the sources {empty} hold no row with {which}; give worlds made by `mmreason data make`, rows with dense "
            "truth of your own, or leave them out"
        )
    return None


def media_features(
    model: Any, rows: Sequence[Mapping[str, torch.Tensor]], device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Every row's features by kind, [n, T, H] each, as the LLM is given them, for the whole batch at once."""
    names = sorted({name for media in rows for name in media})
    inputs = {n: torch.cat([media[n] for media in rows if n in media]).to(device) for n in names}
    audio = [inputs.get(n) for n in model.config.audio_names]
    times = inputs.get("video_times")
    encoded = model.encode(inputs.get("pixel_values"), inputs.get("pixel_values_videos"), audio, times)
    features = model.place(encoded, times)
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


def grids(
    features: torch.Tensor, kind: str, times: torch.Tensor | None, config: Any
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A medium's features [n, T, H] on their grids [time, rows, columns, H], one for each audio encoder, and their
    moments [time] in seconds. `times` are those of the row's frames.
    """
    if kind == "audio":
        parts = features.split(config.audio_tokens, dim=1)
        moments = torch.tensor(config.audio_moments).split(config.audio_tokens)
        return [(p[0, :, None, None], m) for p, m in zip(parts, moments, strict=True)]
    side = math.isqrt(features.shape[1])
    shown = features.view(len(features), side, side, -1)
    if kind == "image":
        return [(shown, torch.zeros(1))]
    assert times is not None
    return [(shown, times.view(len(features), -1).float().mean(dim=1))]
