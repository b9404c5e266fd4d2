"""A bounded number of rows rendered as every stage renders them, and held against the stages' limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mmreason.data.media import MediaError, decode, limits_of
from mmreason.data.transforms import supervised
from mmreason.memory import Rows
from mmreason.render import Renderer, RenderError
from mmreason.schema import Recipe, SFTStage, StageConfig
from mmreason.types import DecodedMedium, Rendered, Sample
from mmreason.validate.report import Report

RENDERED_ROWS = (
    32  # rows of each source: so many evenly spread, as many of the largest, as many of the longest
)


@dataclass
class Seen:
    """What was rendered of a source, by kind: "prompt", and the full rows of every SFT stage by its name.

    Example: `Seen({"prompt": [12, 30]}, {"prompt": longer})`.
    """

    lengths: dict[str, list[int]] = field(default_factory=dict)
    longest: dict[str, Rendered] = field(default_factory=dict)

    def take(self, kind: str, row: Rendered) -> None:
        """Note a row; of the longest the media are kept."""
        self.lengths.setdefault(kind, []).append(len(row))
        if kind not in self.longest or len(row) > len(self.longest[kind]):
            self.longest[kind] = row


def render_rows(
    recipe: Recipe,
    renderer: Renderer,
    source: str,
    samples: Sequence[Sample],
    pixels: Mapping[str, int],
    report: Report,
) -> Seen:
    """Decode and render some rows of a source as every stage that uses it does, and hold them against the limits.

    `pixels`: id of a row -> pixels of its pictures and frames; the rows with the most are among those rendered.
    """
    seen = Seen()
    limits = limits_of(recipe, renderer.processor)
    stages = [s for s in recipe.stages if source in s.sources()]
    prompts: list[int] = []
    targets: list[int] = []
    problems: list[str] = []

    def rendered(row: Sample, how: Callable[[Sample, list[DecodedMedium]], Rendered]) -> Rendered | None:
        try:
            return how(row, [decode(ref, limits) for ref in row.media])
        except MediaError as error:
            problems.append(f"data.{source}, row {row.id}: {error}")
        except RenderError as error:
            problems.append(f"data.{source}, {error}")
        return None

    for sample in _chosen(samples, pixels):
        prompt = rendered(sample, renderer.prompt)
        if prompt is None:
            continue
        prompts.append(len(prompt))
        seen.take("prompt", prompt)
        problems += [
            f"stages.{stage.name}: row {sample.id} has a prompt of {len(prompt)} tokens; allowed are "
            f"{stage.max_prompt_length} (max_prompt_length): raise it, shorten the question or lower model.max_pixels"
            for stage in stages
            if len(prompt) > stage.max_prompt_length
        ]
    for stage in [s for s in stages if isinstance(s, SFTStage)]:
        for row in _chosen(_targets(stage, samples, recipe.seed, report), pixels):
            full = rendered(row, renderer.full)
            if full is None:
                continue
            targets.append(len(full) - int(full.sampled.float().argmax()))
            seen.take(stage.name, full)
            if len(full) > stage.max_length:
                problems.append(
                    f"stages.{stage.name}: row {row.id} has {len(full)} tokens; allowed are {stage.max_length} "
                    "(max_length): raise it, shorten the row or lower model.max_pixels"
                )
    report.add(list(dict.fromkeys(problems)))
    report.sources[source] |= {"prompt": _spans(prompts), "target": _spans(targets)}
    return seen


def _targets(stage: SFTStage, samples: Sequence[Sample], seed: int, report: Report) -> list[Sample]:
    """The rows that an SFT stage makes of a source. A row without its rationale or solution is a problem, any row."""
    rows: list[Sample] = []
    problems: list[str] = []
    for sample in samples:
        try:
            rows.append(supervised(sample, stage.rationale, 0.0, seed))
        except ValueError as error:
            problems.append(f"stages.{stage.name}: {error}")
    report.add(problems)
    return rows


def rows_of(stage: StageConfig, seen: Mapping[str, Seen]) -> Rows | None:
    """The rows of a stage as they were rendered, full ones for SFT, prompts for the others; None: none was."""
    kind = stage.name if isinstance(stage, SFTStage) else "prompt"
    return joined([seen[name] for name in stage.sources() if name in seen], kind)


def joined(seen: Sequence[Seen], kind: str) -> Rows | None:
    """Rendered rows of one kind, of several sources."""
    lengths = [n for s in seen for n in s.lengths.get(kind, ())]
    rows = [s.longest[kind] for s in seen if kind in s.longest]
    return Rows(max(rows, key=len), tuple(lengths)) if rows else None


def _chosen(samples: Sequence[Sample], pixels: Mapping[str, int]) -> list[Sample]:
    """RENDERED_ROWS rows at even distances, as many with the most pixels, and as many with the most media and text."""
    count = len(samples)
    even = (
        {i * (count - 1) // max(RENDERED_ROWS - 1, 1) for i in range(RENDERED_ROWS)} if count else set[int]()
    )
    longest_text = sorted(range(count), key=lambda i: _extent(samples[i]), reverse=True)[:RENDERED_ROWS]
    shown = sorted(
        (i for i in range(count) if pixels.get(samples[i].id)), key=lambda i: -pixels[samples[i].id]
    )
    return [samples[i] for i in sorted({*even, *longest_text, *shown[:RENDERED_ROWS]})]


def _extent(sample: Sample) -> tuple[int, int]:
    """(media, characters) of a row."""
    return len(sample.media), sum(len(part.text) for message in sample.messages for part in message.parts)


def _spans(lengths: Sequence[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    return {
        "min": min(lengths),
        "mean": sum(lengths) / len(lengths),
        "max": max(lengths),
        "rows": len(lengths),
    }
