"""Read a run directory into one value. Whatever is not there (yet) is empty: a report may be made while a run runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmreason.evaluate import EvalRow, compare, parent_of, read_eval, stage_rows
from mmreason.evaluate.roots import located, read_roots

BEFORE = "before"


@dataclass(frozen=True)
class Run:
    """All that a report is made from.

    Example: `load_run(Path("runs/quickstart")).line` is `["before", "sft", "grpo"]`.
    """

    folder: Path
    recipe_text: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # stage -> block of eval.json
    rows: Mapping[str, Sequence[EvalRow]] = field(default_factory=dict)  # stage -> judged answers
    quarantine: Sequence[Mapping[str, Any]] = ()
    ablations: Mapping[str, Any] = field(default_factory=dict)  # name -> block of evaluate.ablation_block

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        """The recipe's stages, in order."""
        return list(self.recipe.get("stages") or ())

    def stage(self, name: str) -> Mapping[str, Any]:
        """One stage's settings; empty for `before`."""
        return next((s for s in self.stages if s.get("name") == name), {})

    def is_branch(self, name: str) -> bool:
        """Whether a stage is a side branch for comparison (the rival), which the final model does not follow."""
        stage = self.stage(name)
        return bool(stage.get("branch") or stage.get("time_of"))

    @property
    def line(self) -> list[str]:
        """Evaluated stages of the main line, `before` first."""
        return [name for name in self.evaluation if not self.is_branch(name)]

    @property
    def rivals(self) -> list[str]:
        """Evaluated side branches."""
        return [name for name in self.evaluation if self.is_branch(name)]

    def parent(self, name: str) -> str | None:
        """The evaluated stage that `name` started from."""
        return parent_of(self.evaluation, name)

    def difference(self, before: str, after: str) -> dict[str, Any]:
        """`evaluate.compare` of two evaluated stages, from eval.json where it is stored there."""
        stored = self.evaluation[after].get("deltas", {}).get(before)
        return stored or compare(self.rows[before], self.rows[after])

    def steps(self, stage: str) -> list[Mapping[str, Any]]:
        """The metric lines of one stage."""
        return [line for line in self.metrics if line.get("stage") == stage]

    def rollouts(self, stage: str) -> list[list[dict[str, Any]]]:
        """The logged completions of a stage, one list for each step's file, in order."""
        mine = re.compile(
            rf"{re.escape(stage)}-(\d{{6,}})\.jsonl"
        )  # another stage's name may begin with this one's
        found = ((mine.fullmatch(path.name), path) for path in (self.folder / "completions").glob("*.jsonl"))
        files = sorted((int(match[1]), path) for match, path in found if match)
        roots = read_roots(self.folder)
        return [
            [{**line, "media": located(line.get("media") or (), roots)} for line in read_lines(path)]
            for _, path in files
        ]


def load_run(folder: Path) -> Run:
    """Read what lies in `folder`.

    Raises:
        ValueError: it is no run directory (neither recipe.yaml nor metrics.jsonl nor eval.json lies in it).
    """
    if not any((folder / name).exists() for name in ("recipe.yaml", "metrics.jsonl", "eval.json")):
        raise ValueError(
            f"{folder} is no run directory: it holds neither recipe.yaml nor metrics.jsonl nor eval.json; give the "
            "output_dir of a recipe that was trained"
        )
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.exists() else ""
    evaluation = read_eval(folder)
    return Run(
        folder=folder,
        recipe_text=text,
        recipe=yaml.safe_load(text) or {},
        environment=read_object(folder / "environment.json"),
        timing=read_object(folder / "timing.json"),
        metrics=read_lines(folder / "metrics.jsonl"),
        evaluation=evaluation,
        rows={name: stage_rows(folder, block) for name, block in evaluation.items()},
        quarantine=read_lines(folder / "quarantine.jsonl"),
        ablations=read_object(folder / "ablations.json").get("ablations") or {},
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty when there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file; a last line that is still being written (no newline yet) is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]
