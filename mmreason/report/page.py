"""Put the page together: a jinja2 template that escapes whatever a model wrote, with style and script inside."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mmreason.data.media import MediaLimits
from mmreason.report import words
from mmreason.report.album import Album
from mmreason.report.curves import stage_curves
from mmreason.report.findings import cost, findings
from mmreason.report.gallery import OUTCOMES, cards
from mmreason.report.headline import headline
from mmreason.report.hedging import hedging
from mmreason.report.load import Run, load_run
from mmreason.report.rollouts import rollout_groups
from mmreason.report.slices import (
    accuracy_grids,
    deprived,
    forms,
    habits,
    relettered,
    slices,
    thinking_charts,
)
from mmreason.report.stages import stage_colours, stage_label

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: str | Path) -> Path:
    """Make `report.html` in the run directory from what lies there, and return its path.

    The file needs nothing beside it: no network, no other file. It may be made while the run still runs.

    Raises:
        ValueError: the folder is no run directory.
    """
    run = load_run(Path(run_dir))
    out = run.folder / "report.html"
    beside = run.folder / ".report.html.writing"
    beside.write_text(render(run), encoding="utf-8")
    os.replace(beside, out)
    return out


def render(run: Run) -> str:
    """The page's text."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = ("percent", "points", "number", "count", "plural")
    environment.filters |= {name: getattr(words, name) for name in filters}
    return environment.get_template("report.html.jinja").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        js=Markup(script),
        # Only this script may run, even if escaping failed somewhere.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **_content(run),
    )


def _content(run: Run) -> dict[str, Any]:
    bounds = ("max_image_pixels", "max_video_pixels", "max_media_seconds")
    album = Album(MediaLimits(**{key: run.recipe[key] for key in bounds if key in run.recipe}))
    colours = stage_colours(run)
    answers, rollouts = cards(run, album), rollout_groups(run, album)
    return {
        "name": run.folder.resolve().name,
        "made": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "subject": _subject(run),
        "headline": headline(run),
        "cost": cost(run),
        "findings": findings(run),
        "last": run.line[-1] if run.line else "",
        "legend": [(colours[name], stage_label(run, name)) for name in run.evaluation],
        "grids": accuracy_grids(run),
        "slices": slices(run),
        "forms": forms(run),
        "habits": habits(run),
        "thinking": thinking_charts(run),
        "curves": stage_curves(run),
        "hedging": hedging(run),
        "deprived": deprived(run),
        "relettered": relettered(run),
        "cards": answers,
        "outcomes": OUTCOMES,
        "groups": rollouts,
        "left_out": album.left_out,
        "recipe_text": run.recipe_text,
        "machine": run.environment,
    }


def _subject(run: Run) -> str:
    """One line on what was trained: the model, then the stages."""
    model = run.recipe.get("model") or {}
    assembled = model.get("assemble") or {}
    name = model.get("model_name_or_path")
    if not name and assembled:
        parts = [assembled.get("vision"), *(assembled.get("audio") or ()), assembled.get("llm")]
        kinds = [str(p.get("model_type") or p.get("pretrained")) for p in parts if p]
        name = "assembled from " + " + ".join(kinds)
    stages = ", ".join(f"{s['name']} ({s.get('type', '?')})" for s in run.stages)
    seed = f"seed {run.recipe['seed']}" if "seed" in run.recipe else ""
    return " \u00b7 ".join(str(part) for part in (name, stages, seed) if part)
