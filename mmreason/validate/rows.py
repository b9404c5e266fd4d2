"""A source's rows before any model is there: each by itself, its media, its rewards, its dense truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmreason.data.media import Extent, MediaError, MediaLimits, check, extent_of
from mmreason.data.media.patience import Here
from mmreason.data.sources import check_rows
from mmreason.data.targets import dense_targets, with_targets
from mmreason.data.transforms import target_text
from mmreason.evaluate import parse_ablation, touched
from mmreason.evaluate.rows import bare_group
from mmreason.render import within_window
from mmreason.rewards import REWARDS, score_group, user_rewards
from mmreason.schema import GRPOStage, PretaskStage, Recipe, SourceConfig
from mmreason.train.pretask import truth_problem, wanted_targets
from mmreason.types import MediumRef, Sample
from mmreason.validate.report import Report

DECODED_MEDIA = 1000  # media of each source that are decoded whole
WORLD_ROWS = 64  # rows of a world that are made; all of them come from the same code
FULL_MARKS = ("exact", "subset", "jaccard", "f1", "blend", "numeric", "format")  # 1.0 on the gold answer


def read_source(name: str, cfg: SourceConfig, folder: Path, report: Report) -> list[Sample]:
    """The rows of a source that are right by themselves; the others' problems. Of a world a few rows are made."""
    if cfg.world is not None:
        cfg = cfg.model_copy(update={"count": min(cfg.count, WORLD_ROWS)})
    samples, problems = check_rows(name, cfg, folder / name)
    if problems:
        report.add(problems)
        if samples:
            report.notes.append(
                f"data.{name}: only the rows that are right by themselves are checked further"
            )
    media = sum(len(sample.media) for sample in samples)
    report.sources[name] = {"rows": len(samples), "media": media, "prompt": None, "target": None}
    return samples


@dataclass(frozen=True)
class Looked:
    """What a look at a source's media tells.

    Example: `Looked(unusable={"a:3"}, heard={"a:1": ("1.wav", 3.5)}, pixels={"a:2": 4096})`.
    """

    unusable: set[str]  # ids of rows with a medium that cannot be read
    heard: dict[str, tuple[str, float]]  # id of a row -> its longest sound, and the seconds of it
    pixels: dict[str, int]  # id of a row -> pixels of all its pictures and frames


def check_media(name: str, samples: Sequence[Sample], limits: MediaLimits, report: Report) -> Looked:
    """Decode every medium; beyond DECODED_MEDIA read the headers only."""
    problems: dict[str, str] = {}
    heard: dict[str, tuple[str, float]] = {}
    pixels: dict[str, int] = {}
    seen: dict[tuple[str, str, str], Extent | str] = {}  # several questions may share a medium
    opened, here = 0, Here(limits)
    for sample in samples:
        for ref in sample.media:
            key = (ref.kind, ref.root, ref.path)  # a file may be shown and heard
            if ref.content is not None or key not in seen:
                seen[key] = _look(ref, limits, here if opened < DECODED_MEDIA else None)
                opened += 1
            told = seen[key]
            if isinstance(told, str):
                problems[sample.id] = f"data.{name}, row {sample.id}: {told}"
                continue
            pixels[sample.id] = pixels.get(sample.id, 0) + told.pixels
            if told.seconds > heard.get(sample.id, ("", 0.0))[1]:
                heard[sample.id] = ref.path or "inline bytes", told.seconds
    if opened > DECODED_MEDIA:
        report.notes.append(
            f"data.{name}: {DECODED_MEDIA} of {opened} media are decoded, the others' headers read"
        )
    report.add(list(problems.values()))
    return Looked(set(problems), heard, pixels)


def _look(ref: MediumRef, limits: MediaLimits, here: Here | None) -> Extent | str:
    """What is wrong with a medium (without `here`, as far as its header tells), or how large it is."""
    try:
        return extent_of(here.decode(ref)) if here else check(ref, limits)
    except MediaError as error:
        return str(error)


def check_window(name: str, looked: Looked, processor: Any, report: Report) -> set[str]:
    """Hold every sound against what the model can hear at once. Returns the ids of rows that cannot be rendered."""
    problems: dict[str, str] = {}
    for sample_id, (path, seconds) in looked.heard.items():
        try:
            within_window(seconds, processor)
        except ValueError as error:
            problems[sample_id] = f"data.{name}, row {sample_id}: {path}: {error}"
    report.add(list(problems.values()))
    return looked.unusable | set(problems)


def check_rewards(stage: GRPOStage, sources: Mapping[str, list[Sample]], report: Report) -> None:
    """Full marks for every gold answer; a verifier that misses its own truth would punish the right answer."""
    where = f"stages.{stage.name}"
    functions = user_rewards(stage.reward_funcs)
    if not any(sources[name] for name in stage.data):
        return  # why there are no rows is said already
    values: dict[str, list[float]] = {name: [] for name in stage.reward_funcs}
    problems: list[str] = []
    for sample in (s for name in dict.fromkeys(stage.data) for s in sources[name]):
        if sample.solution is None:
            problems.append(f"{where}: row {sample.id} has no solution, so no reward can judge it; give one")
            continue
        group = bare_group(sample, [target_text(sample, "none")])
        scored, said = score_group(
            group, stage.reward_funcs, stage.reward_weights, stage.reward_args, functions
        )
        problems += said
        gold = scored.trajectories[0]
        if gold.accuracy != 1.0:
            problems.append(
                f"{where}: row {sample.id}: its own solution {sample.solution!r} is judged {gold.accuracy}"
            )
        for name, value in gold.rewards.items():
            if value is not None:
                values[name].append(value)
            if name in REWARDS and name in FULL_MARKS and value not in (None, 1.0):
                problems.append(
                    f"{where}: row {sample.id}: reward {name} gives its own solution {value}, not 1"
                )
    report.add(problems)
    report.rewards[stage.name] = {name: sum(v) / len(v) if v else None for name, v in values.items()}


def check_ablations(recipe: Recipe, sources: Mapping[str, list[Sample]], report: Report) -> None:
    """Every entry of `eval.ablate` needs rows in `eval.data` that have it to lose."""
    samples = [sample for name in recipe.eval.data for sample in sources[name]]
    for text in recipe.eval.ablate if samples else ():
        try:
            ablation = parse_ablation(text)
        except ValueError:
            continue  # said with the settings
        report.attempt(partial(touched, ablation, samples))


def check_dense(stage: PretaskStage, sources: Mapping[str, list[Sample]], report: Report) -> None:
    """The dense truth that a pretask learns from: there at all, and whole."""
    wrong = []
    for name in dict.fromkeys(stage.data):
        for sample in with_targets(sources[name]):
            try:
                dense_targets(sample)
            except ValueError as error:
                wrong.append(f"data.{name}, {error}")
    report.add(wrong)
    truth = {name: wanted_targets(stage, sources[name]) for name in stage.data} if not wrong else {}
    if all(sources[name] for name in truth) and (problem := truth_problem(stage, truth, sources)):
        report.add([f"stages.{stage.name}: {problem}"])
