"""Held-out evaluation of the run's present weights: greedy answers, judged and stored under the stage's name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from mmreason.data.media import decode
from mmreason.evaluate import (
    Ablation,
    EvalRow,
    Generate,
    ablated_prompt,
    ablation_block,
    evaluate,
    limit_evenly,
    parse_ablation,
    read_eval,
    save_stage,
    stage_rows,
    summarise,
    touched,
    write_json,
    write_rows,
)
from mmreason.model.encode_once import begin_anew
from mmreason.rollout.engine import engine
from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import Recipe
from mmreason.train.context import Context
from mmreason.train.distributed import shard
from mmreason.train.prepare import prepare
from mmreason.types import Rendered, Sample


def evaluate_stage(context: Context, name: str) -> None:
    """Evaluate on `eval.data` and store the block `name` in eval.json; a block that is there already stays."""
    config = context.recipe.eval
    if not config.data or name in read_eval(context.run_dir):
        return
    began = time.perf_counter()
    samples = readable(context, limit_evenly({n: context.sources[n] for n in config.data}, config.limit))
    context.quarantine.share(context.backend.gather)
    rows = _asked(context, samples, greedy(context), name)
    if context.backend.is_main:
        parent = _parent(context, name)
        save_stage(context.run_dir, name, rows, parent=parent, seconds=time.perf_counter() - began)
    context.backend.barrier()


def ablate_run(context: Context) -> None:
    """Ask `eval.data` again without the senses that `eval.ablate` names, and store `ablations.json`.

    The run's model holds the final weights; the answers with every sense are those of the main line's last stage.
    """
    config = context.recipe.eval
    last = [stage.name for stage in context.recipe.stages if not stage.branch][-1]
    stored = read_eval(context.run_dir)
    if not config.ablate or last not in stored:
        return
    plain = stage_rows(context.run_dir, stored[last])
    answered = {(row.source, row.id) for row in plain}
    asked: dict[str, Sequence[Sample]] = {
        n: [s for s in context.sources[n] if (s.source, s.id) in answered] for n in config.data
    }
    samples = limit_evenly(asked, config.ablate_limit)
    blocks = {}
    for ablation in map(parse_ablation, config.ablate):
        chosen, answer = touched(ablation, samples), greedy(context, without(context, ablation))
        blocks[ablation.name] = ablation_block(plain, _asked(context, chosen, answer, ablation.name))
    if context.backend.is_main:
        write_json(context.run_dir / "ablations.json", {"stage": last, "ablations": blocks})
    context.backend.barrier()


def ablations_fit(context: Context) -> None:
    """Say before the first step what would otherwise end the run after the last.

    Raises:
        ValueError: an entry of `eval.ablate` for which `eval.data` has no row.
    """
    config = context.recipe.eval
    samples = limit_evenly({name: context.sources[name] for name in config.data}, config.ablate_limit)
    for ablation in map(parse_ablation, config.ablate):
        touched(ablation, samples)


def _asked(context: Context, samples: Sequence[Sample], answer: Generate, name: str) -> list[EvalRow]:
    """The judged answers of all ranks, each to its share of the questions, in the questions' order."""
    mine = shard(samples, context.backend)
    begin_anew(context.features)
    rows: list[EvalRow] = []
    with Progress(console=context.console, disable=not context.backend.is_main, transient=True) as bar:
        task = bar.add_task(f"evaluate ({name})", total=len(mine))
        if (
            mine or not samples
        ):  # fewer rows than ranks leave some ranks without any; no rows at all is an error
            rows = evaluate(
                mine,
                answer,
                batch_size=context.recipe.eval.batch_size,
                progress=lambda done: bar.update(task, completed=done),
            )
    order = {(s.source, s.id): i for i, s in enumerate(samples)}
    everyone = [row for part in context.backend.gather(rows) for row in part]
    return sorted(everyone, key=lambda row: order[row.source, row.id])


def evaluate_model(
    model: str,
    data: Sequence[str],
    *,
    max_completion_length: int = 256,
    batch_size: int = 64,
    limit: int | None = None,
    system_prompt: str | None = None,
    ablate: Sequence[str] = (),
    rows: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a saved model on files of rows; returns the measures of one eval.json block.

    `ablate` asks the questions again without a sense (`evaluate.ablate`): `image`, `video` and `audio` blanked,
    `sound_shift=1.0`, `audio_encoder=0`. Key `ablations` then holds, by what was asked, `ablation_block` of the rows
    that have it to lose. `rows` is a file that gets every answer with all senses, an `EvalRow` a line.

    Raises:
        ValueError: no readable row, or a model, row, ablation or file that does not fit; the message says what to do.
    """
    ablations = [parse_ablation(text) for text in ablate]
    if rows is not None and Path(rows).is_dir():  # before the first answer, not after the last
        raise ValueError(f"eval: rows is {str(rows)!r}, which is a folder; name a file for the answers")
    names = _names(data)
    with tempfile.TemporaryDirectory(prefix="mmreason-eval-") as folder:
        recipe = _eval_recipe(model, names, folder, max_completion_length, batch_size, limit, system_prompt)
        context = prepare(recipe, Path(folder), None)
        chosen = limit_evenly({name: context.sources[name] for name in names}, limit)
        samples = readable(context, chosen)
        for source, lost in context.quarantine.state_dict()["rows"].items():
            for row, reason in lost.items():
                context.console.print(f"not read: {source} {row}: {reason}", markup=False, soft_wrap=True)
        asked = {ablation.name: touched(ablation, samples) for ablation in ablations}
        for ablation in ablations:  # what does not fit is said before the first answer
            without(context, ablation)(asked[ablation.name][0])
        plain = evaluate(samples, greedy(context), batch_size=batch_size)
        if rows is not None:
            write_rows(Path(rows), plain)
        taken = {}
        for ablation in ablations:
            answer = greedy(context, without(context, ablation))
            again = evaluate(asked[ablation.name], answer, batch_size=batch_size)
            taken[ablation.name] = ablation_block(plain, again)
    return summarise(plain) | {"unreadable": len(chosen) - len(samples), "ablations": taken}


def without(context: Context, ablation: Ablation) -> Callable[[Sample], Rendered]:
    """How readable rows are shown to the model when a sense is taken away."""

    def prompt(sample: Sample) -> Rendered:
        media = [decode(ref, context.feed.limits) for ref in sample.media]
        return ablated_prompt(ablation, sample, media, context.renderer.prompt)

    return prompt


def _names(data: Sequence[str]) -> dict[str, str]:
    """Source name -> file: its stem; its folder where several share that (every world writes a rows.jsonl).

    What is still the same is numbered, so that none hides another.
    """
    names: dict[str, str] = {}
    stems = [Path(path).stem for path in data]
    for path, stem in zip(data, stems, strict=True):
        base = Path(path).resolve().parent.name if stems.count(stem) > 1 else stem
        taken = sum(name == base or name.startswith(f"{base}-") for name in names)
        names[f"{base}-{taken + 1}" if taken else base] = path
    return names


def _eval_recipe(
    model: str,
    names: dict[str, str],
    folder: str,
    max_completion_length: int,
    batch_size: int,
    limit: int | None,
    system_prompt: str | None,
) -> Recipe:
    return Recipe.model_validate(
        {
            "output_dir": folder,
            "system_prompt": system_prompt,
            "model": {"model_name_or_path": model},
            "data": {name: {"path": path} for name, path in names.items()},
            "stages": [{"type": "sft", "name": "none", "data": []}],
            "eval": {
                "data": list(names),
                "max_completion_length": max_completion_length,
                "batch_size": batch_size,
                "limit": limit,
            },
        }
    )


def readable(context: Context, samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose media can be read; the others are in quarantine by name."""
    context.feed.ahead(lambda: samples)
    return [sample for sample in samples if context.feed.prompt(sample) is not None]


def greedy(context: Context, prompt: Callable[[Sample], Rendered | None] | None = None) -> Generate:
    """A `Generate` over the run's model: one greedy completion for each sample, shown by `prompt` (the run's feed)."""
    show = prompt or context.feed.prompt
    config = context.recipe.eval
    params = SamplingParams(
        config.max_completion_length,
        greedy=True,
        stop=tuple(config.stop_strings),
        max_rows=config.batch_size,
        kv_bytes=context.recipe.rollout.kv_cache_memory_bytes,
    )

    def answer(samples: Sequence[Sample]) -> list[tuple[str, int]]:
        prompts = [p for p in map(show, samples) if p is not None]
        complete = engine(context.model, context.recipe.shared_prefix)
        with context.encoding():
            done = complete(context.model, context.family, context.renderer, prompts, 1, params)
        return [(group[0].text, len(group[0])) for group in done]

    return answer


def _parent(context: Context, name: str) -> str | None:
    names = [s.name for s in context.recipe.stages]
    if name not in names:
        return None
    stage = context.recipe.stages[names.index(name)]
    earlier = [s.name for s in context.recipe.stages[: names.index(name)] if not s.branch]
    return stage.init_from or (earlier[-1] if earlier else "before")
