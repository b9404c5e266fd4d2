"""Everything that can be known before training, all problems at once: rows, media, rendering, rewards, memory.

`validate` uses the parts that training uses (the same loader, renderer, verifier and rewards), on a bounded number of
rows where the work is large. What it cannot know it labels: memory is an estimate.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Group as Lines
from rich.table import Table

from mmreason.curriculum import gate_problem
from mmreason.data.media import MediaError, MediaLimits, check, decode, limits_of
from mmreason.data.sources import check_rows
from mmreason.data.targets import dense_targets, with_targets
from mmreason.data.transforms import supervised, target_text
from mmreason.evaluate import parse_ablation
from mmreason.evaluate.rows import bare_group
from mmreason.memory import Memory, estimate
from mmreason.model.load import Loaded, load_model
from mmreason.model.packed import needs_side_by_side
from mmreason.model.parts import freeze
from mmreason.plugins import load_plugins
from mmreason.recipe import RecipeError, load_recipe, mended_recipe, sources_of
from mmreason.render import Renderer, RenderError
from mmreason.rewards import REWARDS, reward_problems, score_group, user_rewards
from mmreason.schema import GRPOStage, PretaskStage, Recipe, SFTStage, SourceConfig, StageConfig
from mmreason.train.prepare import training_texts
from mmreason.train.pretask import needs_assembled, truth_problem, wanted_targets
from mmreason.types import DecodedMedium, MediumRef, Rendered, Sample

RENDERED_ROWS = 32  # rows of each source that are rendered: so many evenly spread, and as many of the longest
DECODED_MEDIA = 1000  # media of each source that are decoded whole
WORLD_ROWS = 64  # rows of a world that are made; all of them come from the same code
NAMED_PROBLEMS = 20  # of one kind in one source; the rest is counted
FULL_MARKS = ("exact", "subset", "jaccard", "f1", "blend", "numeric", "format")  # 1.0 on the gold answer


@dataclass
class Report:
    """What validation found. Sound when `problems` is empty.

    Example: `Report("recipes/debug.yaml").as_dict()["ok"]` is True.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was not checked, and why
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)  # rows, media, prompt and target tokens
    rewards: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # stage -> reward -> mean on gold answers
    memory: dict[str, Memory] = field(default_factory=dict)  # stage -> estimate

    def add(self, problems: Sequence[str]) -> None:
        """Take up problems of one kind: the first NAMED_PROBLEMS by name, the rest as a number."""
        self.problems += problems[:NAMED_PROBLEMS]
        if len(problems) > NAMED_PROBLEMS:
            self.problems.append(f"... and {len(problems) - NAMED_PROBLEMS} more like the last one")

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        memory = {name: m.as_dict() for name, m in self.memory.items()}
        parts = {"sources": self.sources, "rewards_on_gold": self.rewards, "memory_estimate": memory}
        return {
            "recipe": self.name,
            "ok": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            **parts,
        }

    def table(self) -> Lines:
        """The report as rich tables, problems last."""
        lines: list[Any] = []
        if self.sources:
            rows = Table("source", "rows", "media", "prompt tokens", "target tokens", title="data")
            for name, s in self.sources.items():
                rows.add_row(name, str(s["rows"]), str(s["media"]), _range(s["prompt"]), _range(s["target"]))
            lines.append(rows)
        if self.rewards:
            marks = Table("stage", "reward", "on the gold answers", title="rewards")
            for stage, means in self.rewards.items():
                for name, value in means.items():
                    marks.add_row(stage, name, "does not apply" if value is None else f"{value:.3f}")
            lines.append(marks)
        if self.memory:
            parts = Table(
                "stage",
                *Memory.PARTS,
                "sum",
                title="memory of one process in MB: a rough estimate, without Python and libraries (0.6 GB)",
            )
            for stage, m in self.memory.items():
                parts.add_row(stage, *(f"{v / 1e6:,.0f}" for v in [*m.parts(), m.total]))
            lines.append(parts)
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        count = len(self.problems)
        lines.append(
            f"{self.name}: " + ("ready to train" if not count else f"{count} problem{'s' * (count != 1)}")
        )
        return Lines(*lines)


def validate_file(path: str | Path, overrides: Sequence[str] = ()) -> Report:
    """Validate a recipe file. A recipe that is wrong itself is checked as it is without its wrong keys, if that will
    do for a recipe; else its readable sources are.
    """
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        mended = mended_recipe(path, overrides)
        if mended is not None:
            report = validate(mended, name=str(path))
            report.problems[:0] = error.problems
            report.notes.append("the wrong keys of the recipe were left out for all that follows them")
            return report
        report = Report(str(path), list(error.problems))
        with tempfile.TemporaryDirectory() as folder:
            for name, cfg in sources_of(path, overrides).items():
                _media(name, _read(name, cfg, Path(folder), MediaLimits(), report), MediaLimits(), report)
        report.notes.append("rendering, rewards and memory are checked once the recipe itself is sound")
        return report
    return validate(recipe, name=str(path))


def validate(recipe: Recipe, *, name: str = "recipe") -> Report:
    """Check a recipe that parses: plugins, trackers, rows, media, template and token counts, rewards, memory."""
    report = Report(name)
    _attempt(report, lambda: load_plugins(recipe.plugins))
    wrong = settings_problems(recipe)
    report.add(wrong)
    with tempfile.TemporaryDirectory() as folder:
        limits = limits_of(recipe)
        sources = {n: _read(n, cfg, Path(folder), limits, report) for n, cfg in recipe.data.items()}
        unreadable = {n: _media(n, samples, limits, report) for n, samples in sources.items()}
        for stage in recipe.stages:
            if isinstance(stage, GRPOStage) and not any(p.startswith(f"stages.{stage.name}.") for p in wrong):
                _rewards(stage, sources, report)
            if isinstance(stage, PretaskStage):
                _dense(stage, sources, report)
        loaded = _attempt(report, lambda: _load(recipe, sources))
        if loaded is None:
            report.notes.append("rendering and memory are checked once the model loads")
            return report
        renderer = _attempt(report, lambda: Renderer(loaded.processor, system_prompt=recipe.system_prompt))
        for source, samples in sources.items() if renderer is not None else ():
            _render(recipe, renderer, source, [s for s in samples if s.id not in unreadable[source]], report)
    for stage in recipe.stages:
        _attempt(report, partial(_fits, stage, recipe, loaded))
        report.memory[stage.name] = estimate(loaded, recipe, stage, *_longest(report, stage))
    return report


def _fits(stage: StageConfig, recipe: Recipe, loaded: Loaded) -> None:
    """Refuse a model that a stage cannot train, and freeze what the stage freezes."""
    try:
        freeze(loaded.model, loaded.family, recipe.model, stage.freeze)
        if isinstance(stage, SFTStage) and stage.questions_per_row > 1:
            needs_side_by_side(loaded.family.name, recipe.model.attn_implementation)
    except ValueError as error:
        raise ValueError(f"stages.{stage.name}: {error}") from error
    if isinstance(stage, PretaskStage):
        needs_assembled(stage, loaded.family.name)


def settings_problems(recipe: Recipe) -> list[str]:
    """What is wrong with trackers, rewards, gates and ablations: it needs no rows, and would else show late."""
    problems = [
        f"report_to: {package} is not installed; pip install 'mmreason[tracking]', or remove it"
        for package in sorted({"tensorboard", "wandb"} & set(recipe.report_to))
        if importlib.util.find_spec(package) is None
    ]
    last = [stage for stage in recipe.stages if not stage.branch][-1]
    if recipe.eval.ablate and not (recipe.eval.data and last.evaluate):
        problems.append(f"eval.ablate: needs eval.data, and stages.{last.name} with evaluate: true")
    for text in recipe.eval.ablate:
        try:
            parse_ablation(text)
        except ValueError as error:
            problems.append(f"eval.{error}")
    for stage in [s for s in recipe.stages if isinstance(s, GRPOStage)]:
        where = f"stages.{stage.name}"
        try:
            functions = user_rewards(stage.reward_funcs)
        except ValueError as error:
            problems.append(f"{where}.reward_funcs: {error}")
        else:
            wrong = reward_problems(stage.reward_funcs, stage.reward_weights, stage.reward_args, functions)
            problems += [f"{where}.reward_funcs: {problem}" for problem in wrong]
        closed = gate_problem(stage.gate, stage.num_generations)
        problems += [f"{where}.gate: {closed}"] if closed else []
    return problems


def _attempt(report: Report, work: Callable[[], Any]) -> Any:
    """The result of `work`, or None with its complaint in the report."""
    try:
        return work()
    except (ValueError, OSError) as error:  # what a user's mistake raises, here and in transformers
        report.add([str(error)])
        return None


def _read(name: str, cfg: SourceConfig, folder: Path, limits: MediaLimits, report: Report) -> list[Sample]:
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


def _media(name: str, samples: Sequence[Sample], limits: MediaLimits, report: Report) -> set[str]:
    """Decode every medium; beyond DECODED_MEDIA read the header only. Returns the ids of rows that cannot be used."""
    problems: dict[str, str] = {}
    seen: dict[tuple[str, str, str], str | None] = {}  # several questions may share a medium
    opened = 0
    for sample in samples:
        for ref in sample.media:
            key = (ref.kind, ref.root, ref.path)  # a file may be shown and heard
            if ref.content is not None or key not in seen:
                seen[key] = _complaint(ref, limits, whole=opened < DECODED_MEDIA)
                opened += 1
            complaint = seen[key]
            if complaint is not None:
                problems[sample.id] = f"data.{name}, row {sample.id}: {complaint}"
    if opened > DECODED_MEDIA:
        report.notes.append(
            f"data.{name}: {DECODED_MEDIA} of {opened} media are decoded, the others' headers read"
        )
    report.add(list(problems.values()))
    return set(problems)


def _complaint(ref: MediumRef, limits: MediaLimits, *, whole: bool) -> str | None:
    """What is wrong with a medium; without `whole`, as far as its header tells."""
    try:
        if whole:
            decode(ref, limits)
        else:
            check(ref, limits)
    except MediaError as error:
        return str(error)
    return None


def _load(recipe: Recipe, sources: dict[str, list[Sample]]) -> Loaded:
    return load_model(recipe.model, texts=lambda: training_texts(recipe, sources), seed=recipe.seed)


# --- rewards


def _rewards(stage: GRPOStage, sources: Mapping[str, list[Sample]], report: Report) -> None:
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


def _dense(stage: PretaskStage, sources: Mapping[str, list[Sample]], report: Report) -> None:
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


# --- media, template, token counts


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


def _render(
    recipe: Recipe, renderer: Renderer, source: str, samples: Sequence[Sample], report: Report
) -> None:
    """Decode and render some rows of a source as every stage that uses it does, and hold them against the limits."""
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

    for sample in _chosen(samples):
        prompt = rendered(sample, renderer.prompt)
        if prompt is None:
            continue
        prompts.append(len(prompt))
        problems += [
            f"stages.{stage.name}: row {sample.id} has a prompt of {len(prompt)} tokens; allowed are "
            f"{stage.max_prompt_length} (max_prompt_length): raise it, shorten the question or lower model.max_pixels"
            for stage in stages
            if len(prompt) > stage.max_prompt_length
        ]
    for stage in [s for s in stages if isinstance(s, SFTStage)]:
        for row in _chosen(_targets(stage, samples, recipe.seed, report)):
            full = rendered(row, renderer.full)
            if full is None:
                continue
            targets.append(len(full) - int(full.sampled.float().argmax()))
            if len(full) > stage.max_length:
                problems.append(
                    f"stages.{stage.name}: row {row.id} has {len(full)} tokens; allowed are {stage.max_length} "
                    "(max_length): raise it, shorten the row or lower model.max_pixels"
                )
    report.add(list(dict.fromkeys(problems)))
    report.sources[source] |= {"prompt": _spans(prompts), "target": _spans(targets)}


def _longest(report: Report, stage: StageConfig) -> tuple[int, int]:
    """The longest prompt and target that were rendered for a stage; the stage's limits where nothing was."""
    used = [report.sources[name] for name in stage.sources()]
    prompts = [s["prompt"]["max"] for s in used if s["prompt"]]
    targets = [s["target"]["max"] for s in used if s["target"]]
    written = stage.max_completion_length if isinstance(stage, GRPOStage) else max(targets, default=0)
    return max(prompts, default=stage.max_prompt_length), written


def _chosen(samples: Sequence[Sample]) -> list[Sample]:
    """RENDERED_ROWS rows at even distances, and as many with the most media and the longest text, in their order."""
    count = len(samples)
    even = (
        {i * (count - 1) // max(RENDERED_ROWS - 1, 1) for i in range(RENDERED_ROWS)} if count else set[int]()
    )
    largest = sorted(range(count), key=lambda i: _extent(samples[i]), reverse=True)[:RENDERED_ROWS]
    return [samples[i] for i in sorted({*even, *largest})]


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


def _range(spans: Mapping[str, float] | None) -> str:
    return "-" if spans is None else f"{spans['min']} to {spans['max']} ({spans['rows']} rows rendered)"
