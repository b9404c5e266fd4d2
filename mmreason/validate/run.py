"""Validate a recipe, or a recipe's file: settings, rows, media, rendering, rewards, memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmreason.data.media import MediaLimits, limits_of
from mmreason.model.load import Loaded, load_model
from mmreason.plugins import load_plugins
from mmreason.recipe import RecipeError, load_recipe, mended_recipe, sources_of
from mmreason.render import Renderer
from mmreason.schema import GRPOStage, PretaskStage, Recipe
from mmreason.train.prepare import training_texts
from mmreason.train.remote import unsent_rows
from mmreason.types import Sample
from mmreason.validate.memory import Room, predict, this_room
from mmreason.validate.rendering import Seen, render_rows
from mmreason.validate.report import Report
from mmreason.validate.rows import (
    check_ablations,
    check_dense,
    check_media,
    check_rewards,
    check_window,
    read_source,
)
from mmreason.validate.settings import fits, settings_problems


def validate_file(path: str | Path, overrides: Sequence[str] = (), room: Room | None = None) -> Report:
    """Validate a recipe file. A recipe that is wrong itself is checked as it is without its wrong keys, if that will
    do for a recipe; else its readable sources are. `room`: the memory of one process; None: of this machine.
    """
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        mended = mended_recipe(path, overrides)
        if mended.recipe is not None:
            report = validate(mended.recipe, name=str(path), room=room, model=mended.model)
            report.problems[:0] = error.problems
            report.notes.append("the wrong keys of the recipe were left out for all that follows them")
            return report
        report = Report(str(path), list(error.problems))
        with tempfile.TemporaryDirectory() as folder:
            for name, cfg in sources_of(path, overrides).items():
                check_media(name, read_source(name, cfg, Path(folder), report), MediaLimits(), report)
        report.notes.append("rendering, rewards and memory are checked once the recipe itself is sound")
        return report
    return validate(recipe, name=str(path), room=room)


def validate(recipe: Recipe, *, name: str = "recipe", room: Room | None = None, model: bool = True) -> Report:
    """Check a recipe that parses: plugins, trackers, rows, media, template and token counts, rewards, memory.

    Without `model` the model in it is none, and what needs one is left out.
    """
    report = Report(name)
    report.attempt(lambda: load_plugins(recipe.plugins))
    room = room or this_room()
    wrong = settings_problems(recipe, room.processes)
    report.add(wrong)
    with tempfile.TemporaryDirectory() as folder:
        limits = limits_of(recipe)
        sources = {n: read_source(n, cfg, Path(folder), report) for n, cfg in recipe.data.items()}
        looked = {n: check_media(n, samples, limits, report) for n, samples in sources.items()}
        check_ablations(recipe, sources, report)
        report.add(unsent_rows(recipe, sources))
        for stage in recipe.stages:
            if isinstance(stage, GRPOStage) and not any(p.startswith(f"stages.{stage.name}.") for p in wrong):
                check_rewards(stage, sources, report)
            if isinstance(stage, PretaskStage):
                check_dense(stage, sources, report)
        loaded = report.attempt(lambda: _load(recipe, sources)) if model else None
        if loaded is None:
            report.notes.append("rendering and memory are checked once the model loads")
            return report
        renderer = report.attempt(lambda: Renderer(loaded.processor, system_prompt=recipe.system_prompt))
        seen: dict[str, Seen] = {}
        for source, samples in sources.items() if renderer is not None else ():
            wrong_rows = check_window(source, looked[source], loaded.processor, report)
            right = [s for s in samples if s.id not in wrong_rows]
            seen[source] = render_rows(recipe, renderer, source, right, looked[source].pixels, report)
    for stage in recipe.stages:
        known = len(report.problems)
        report.attempt(partial(fits, stage, recipe, loaded))
        if renderer is not None and len(report.problems) == known:
            predict(loaded, renderer, recipe, stage, seen, room, report)
    return report


def _load(recipe: Recipe, sources: dict[str, list[Sample]]) -> Loaded:
    model = recipe.model.model_copy(update={"load_in_4bit": False})  # counted, and not made
    return load_model(model, texts=lambda: training_texts(recipe, sources), seed=recipe.seed)
