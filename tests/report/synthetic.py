"""A small run directory as a finished run leaves it, with real pictures in an archive."""

from __future__ import annotations

import io
import json
import math
import random
import zipfile
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from mmreason.evaluate import EvalRow, judge, save_stage
from mmreason.types import MediumRef, Message, Part, Sample
from tests.data.clips import mp4, tone, wav

COLOURS = {"red": "#d33", "blue": "#36c", "green": "#3a3", "grey": "#888", "gold": "#ca2"}
STAGES = (("before", 0.12, None), ("sft", 0.66, "before"), ("grpo", 0.85, "sft"), ("sft_longer", 0.7, "sft"))
ATTACK = "<script>alert('x')</script>"


def make_run(
    folder: Path,
    *,
    questions: int = 60,
    steps: int = 40,
    seed: int = 0,
    trouble: bool = False,
    films: int = 0,
) -> Path:
    """before -> sft -> grpo, and the rival of grpo. `trouble` adds everything that the first screen warns about.

    `films` questions each on a video, a sound, and a video with its sound come after those on pictures.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    samples = _samples(folder / "data", questions, rng) + timed_samples(folder / "data", films)
    recipe = {
        "output_dir": str(folder),
        "seed": seed,
        "model": {
            "assemble": {"vision": {"model_type": "siglip_vision_model"}, "llm": {"model_type": "qwen3"}}
        },
        "data": {"test": {"world": "image", "split": "test"}},
        "stages": [
            {"name": "sft", "type": "sft", "data": []},
            {"name": "grpo", "type": "grpo", "data": []},
            {
                "name": "sft_longer",
                "type": "sft",
                "data": [],
                "init_from": "sft",
                "time_of": "grpo",
                "branch": True,
            },
        ],
        "eval": {"data": ["test"], "max_completion_length": 256},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    environment = {
        "python": "3.11.9",
        "cpu_count": 2,
        "torch_threads": 2,
        "cuda": None,
        "packages": {"torch": "2.11.0"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    timing = {"stages": {"sft": 121.0, "grpo": 210.5, "sft_longer": 211.0}, "total_s": 611.2}
    (folder / "timing.json").write_text(json.dumps({**timing, "peak_memory_bytes": 2_310_000_000}))
    _metrics(folder, steps, rng, trouble)
    for stage, skill, parent in STAGES:
        save_stage(folder, stage, _answers(samples, skill, rng, trouble and stage == "grpo"), parent=parent)
    _rollouts(folder, samples, steps, rng)
    if trouble:
        line = {
            "source": "train",
            "id": "train:7",
            "medium": "images-000.zip#7.png",
            "reason": f"truncated picture {ATTACK}",
        }
        (folder / "quarantine.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def _samples(data: Path, count: int, rng: random.Random) -> list[Sample]:
    data.mkdir(exist_ok=True)
    samples = []
    with zipfile.ZipFile(data / "images-000.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in range(count):
            shapes = [
                (rng.choice(list(COLOURS)), 6 + 30 * (k % 3), 6 + 30 * (k // 3)) for k in range(2 + i % 7)
            ]
            picture = Image.new("RGB", (96, 96), "#f4f1ea")
            draw = ImageDraw.Draw(picture)
            for colour, x, y in shapes:
                draw.ellipse((x, y, x + 22, y + 22), fill=COLOURS[colour])
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            archive.writestr(f"{i:06d}.png", buffer.getvalue())
            samples.append(_question(i, shapes, str(data), rng))
    return samples


def _question(i: int, shapes: list, root: str, rng: random.Random) -> Sample:
    colours = [c for c, _, _ in shapes]
    target = rng.choice(colours)
    evidence = tuple(
        {"box": [x, y, x + 22, y + 22], "label": f"{c} disc"} for c, x, y in shapes if c == target
    )
    options: tuple[str, ...] = ()
    if i % 3 == 0:
        kind, problem_type, text, solution = (
            "count",
            "numeric",
            f"How many {target} discs?",
            str(colours.count(target)),
        )
    elif i % 3 == 1:
        kind, problem_type, text, solution = (
            "seen",
            "multi_choice",
            "Which colours are seen?",
            ", ".join(sorted(set(colours))),
        )
        options = tuple(COLOURS)
    else:
        kind, problem_type, text, solution = (
            "first",
            "single_choice",
            "Which colour is at the top left?",
            colours[0],
        )
        options = tuple(COLOURS)
    return Sample(
        id=f"test:{i}",
        source="test",
        messages=(Message("user", (Part("image", medium=0), Part("text", text=text))),),
        media=(MediumRef("image", f"images-000.zip#{i:06d}.png", root=root),),
        solution=solution,
        problem_type=problem_type,
        options=options,
        evidence=evidence,
        difficulty=(i % 7) / 6,
        columns={"kind": kind},
    )


def timed_samples(data: Path, count: int) -> list[Sample]:
    """`count` questions each on a video, a sound, and a video with its sound, with evidence in time."""
    if not count:
        return []
    beep = tone(4.0)
    beep[16_000:] = 0  # in the first second
    (data / "film.mp4").write_bytes(mp4())
    (data / "both.mp4").write_bytes(mp4(sound=beep))
    (data / "beep.wav").write_bytes(wav((beep * 32767).astype("int16")))
    box = {"box": [8, 10, 20, 22], "t": 2.0, "label": "star appeared"}
    later = {"box": [30, 10, 44, 22], "t": 3.5, "label": "star vanished"}
    span = {"span": [0.0, 1.0], "label": "beep"}
    made = []
    for name, kinds, evidence in (
        ("film.mp4", ("video",), (box, later, {"span": [1.5, 2.5], "label": "star appeared"})),
        ("beep.wav", ("audio",), (span,)),
        ("both.mp4", ("video", "audio"), (box, {**span, "medium": 1})),
    ):
        refs = tuple(MediumRef(kind, name, root=str(data)) for kind in kinds)  # type: ignore[arg-type]
        parts = tuple(Part(kind, medium=i) for i, kind in enumerate(kinds))  # type: ignore[arg-type]
        for i in range(count):
            made.append(
                Sample(
                    id=f"{name}:{i}",
                    source="test",
                    messages=(Message("user", (*parts, Part("text", text=f"What is there? ({i})"))),),
                    media=refs,
                    solution=str(i % 3),
                    problem_type="numeric",
                    evidence=evidence,
                    difficulty=i / count,
                    columns={"kind": "timed"},
                )
            )
    return made


def _completion(sample: Sample, right: bool, hedges: bool, rng: random.Random) -> str:
    answer = sample.solution or ""
    several = answer.split(", ")
    if hedges and len(several) > 1:
        answer = several[0]
    elif not right:
        answer = (
            "7"
            if sample.problem_type == "numeric"
            else rng.choice([c for c in COLOURS if c not in several] or ["pink"])
        )
    thought = "" if (sample.difficulty or 0) < 0.3 and rng.random() < 0.6 else (
        "<planning>Look at each disc in turn.</planning><caption>Discs on a pale ground.</caption>"
        f"<reasoning>I see {', '.join(several)} where it matters.</reasoning><summary>{answer}</summary>"
    )  # fmt: skip
    return f"<think>{thought}</think><answer>{answer}</answer>"


def _answers(samples: list[Sample], skill: float, rng: random.Random, trouble: bool) -> list[EvalRow]:
    rows = []
    for i, sample in enumerate(samples):
        right = rng.random() < skill * (1.15 - 0.4 * (sample.difficulty or 0))
        text = _completion(sample, right, trouble, rng)
        if i == 0:
            text = f"{ATTACK}<img src=x onerror=alert(1)> & 'quotes' \u2028" + text
        rows.append(judge(sample, text, 256 if trouble and i < 3 else len(text) // 3))
    return rows


def _metrics(folder: Path, steps: int, rng: random.Random, trouble: bool) -> None:
    lines: list[dict[str, Any]] = []
    for stage in ("sft", "grpo", "sft_longer"):
        for i in range(steps):
            t = i / steps
            line: dict[str, Any] = {"step": len(lines) + 1, "stage": stage}
            line |= {
                "loss": 2.5 * math.exp(-3 * t) + 0.2 + rng.gauss(0, 0.05),
                "grad_norm": 1.0 + rng.random(),
            }
            line |= {
                "learning_rate": 1e-4 * (1 - t),
                "entropy": 1.1 - 0.7 * t,
                "time/step": 0.8 + 0.1 * rng.random(),
            }
            line |= {"tokens/learned": 900.0 + 50 * rng.random(), "tokens/input": 5200.0, "memory/pss": 2.0e9}
            line["skipped_steps"] = float(trouble and i == 3)
            lines.append(line | (_rollout_metrics(t, i, rng, trouble) if stage == "grpo" else {}))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 9')  # a line that was being written when we looked


def _rollout_metrics(t: float, i: int, rng: random.Random, trouble: bool) -> dict[str, Any]:
    up = 0.55 + 0.3 * t + rng.gauss(0, 0.04)
    return {
        "reward": 1.1 * up,
        "reward_std": 0.4 - 0.2 * t,
        "rewards/blend/mean": up,
        "rewards/format/mean": 0.97,
        "rewards/blend/std": 0.2,
        "accuracy": up,
        "kl": 0.02 * t,
        "think_rate": 0.8 - 0.2 * t,
        "hedge_rate": 0.1 * t,
        "completions/mean_length": 60 - 12 * t,
        "completions/min_length": 20.0,
        "completions/max_length": 110.0,
        "completions/clipped_ratio": 0.2 if trouble else 0.0,
        "frac_reward_zero_std": 0.2 + 0.2 * t,
        "curriculum/window_low": 0.6 * t,
        "curriculum/admitted": 0.5 + 0.1 * rng.random(),
        "difficulty": 0.2 + 0.5 * t,
        "clip_ratio/low": 0.01,
        "clip_ratio/high": 0.02,
        "rewards/bad_values": float(trouble and i < 2),
        "odd_number": None if i == 5 else 3.0,
    }


def _rollouts(folder: Path, samples: list[Sample], steps: int, rng: random.Random) -> None:
    (folder / "completions").mkdir(exist_ok=True)
    for step in range(steps, 2 * steps, 5):
        sample = samples[(7 * step) % len(samples)]
        lines = []
        for i in range(4):
            row = judge(sample, _completion(sample, i % 2 == 0, i == 3, rng) + (ATTACK if i == 1 else ""), 40)
            reward = (row.correct or 0.0) + 0.1 * row.format
            lines.append({
                "step": step, "group": 0, "id": sample.id, "prompt": row.question, "completion": row.completion,
                "media": list(row.media), "evidence": list(row.evidence), "options": list(row.options),
                "solution": row.solution, "problem_type": row.problem_type, "difficulty": row.difficulty, "tokens": 40,
                "modality": row.modality,
                "finish": "length" if i == 3 else "stop", "accuracy": row.correct, "reward": reward,
                "rewards": {"blend": row.correct, "format": row.format, "mine": None}, "advantage": reward - 0.6,
            })  # fmt: skip
        path = folder / "completions" / f"grpo-{step:06d}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
