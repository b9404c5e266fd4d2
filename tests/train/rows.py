"""Stored rows for tests of the step: ragged lengths, some pictures, GRPO streams with old and reference values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmreason.render import Renderer
from mmreason.types import DecodedMedium, Message, Part, Sample, TrainingSample


def sft_rows(processor, count: int = 8) -> list[TrainingSample]:
    """Rows of different lengths; every second one has a picture."""
    from mmreason.objective import sft_sample

    renderer = Renderer(processor)
    return [sft_sample(renderer.full(*picture_sample(i, with_answer=True))) for i in range(count)]


def grpo_rows(
    processor,
    count: int = 8,
    loss_type: str = "dapo",
    lengths: Sequence[tuple[int, int]] | None = None,
    pictures: bool = True,
) -> list[TrainingSample]:
    """Two-row groups with made-up completions, advantages, old and reference log-probabilities.

    `lengths` of each group's completions; None: short ones. Without `pictures` every prompt is text.
    """
    from mmreason.objective import advantages, grpo_samples
    from mmreason.types import Group, Trajectory

    renderer = Renderer(processor)
    generator = torch.Generator().manual_seed(3)
    rows: list[TrainingSample] = []
    for g in range(count // 2):
        sample, media = picture_sample(g if pictures else 2 * g + 1)
        prompt = renderer.prompt(sample, media)
        trajectories = []
        for i in range(2):
            length = 3 + 2 * g + i if lengths is None else lengths[g][i]
            ids = renderer.append(prompt, *completion(renderer, g, i, length)).ids[len(prompt) :]
            trajectories.append(
                Trajectory(ids, torch.ones(len(ids), dtype=torch.bool), "x", "stop", reward=float(i))
            )
        values = advantages([[0.0, 1.0]], "group")[0]
        rows += grpo_samples(
            Group(sample, prompt, tuple(trajectories)),
            values,
            loss_type=loss_type,
            beta=0.1,
            max_completion_length=32,
            mask_truncated=False,
            group_id=g,
        )
    from dataclasses import replace

    def noise(row: TrainingSample) -> torch.Tensor:
        return -5.5 + 0.3 * torch.randn(len(row), generator=generator)

    return [replace(row, old_logprobs=noise(row), ref_logprobs=noise(row)) for row in rows]


def completion(renderer: Renderer, g: int, i: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a completion of `length` tokens that ends properly, and their sampled bits."""
    ids = torch.tensor([20 + (g * 7 + i * 3 + k) % 40 for k in range(length)] + [min(renderer.eos_ids)])
    return ids, torch.ones(len(ids), dtype=torch.bool)


def picture_sample(i: int, with_answer: bool = False) -> tuple[Sample, list[DecodedMedium]]:
    """Sample i with its decoded picture (odd i: text only)."""
    from PIL import Image

    from mmreason.types import MediumRef

    has_picture = i % 2 == 0
    parts: tuple[Part, ...] = (Part("text", text="how many " + "red " * i + "things"),)
    if has_picture:
        parts = (Part("image", medium=0), *parts)
    messages = [Message("user", parts)]
    if with_answer:
        messages.append(
            Message("assistant", (Part("text", text="<think>a</think><answer>" + "b " * i + "</answer>"),))
        )
    media = [DecodedMedium("image", f"{i}.png", image=Image.new("RGB", (64, 64), (40 * i % 255, 90, 10)))]
    refs = (MediumRef("image", f"{i}.png"),) if has_picture else ()
    sample = Sample(f"t:{i}", "t", tuple(messages), refs, solution="2", problem_type="numeric")
    return sample, media if has_picture else []


MIXED = ("image", "text", "image", "text", "video", "audio", "text", "audio")


def mixed_rows(
    processor, kinds: Sequence[str] = MIXED, frames: int = 6, seconds: float = 0.75
) -> list[TrainingSample]:
    """A row of each kind, where the model has the sense (else text); of MIXED, the first half is seen, not heard."""
    import numpy as np

    from mmreason.objective import sft_sample
    from mmreason.types import MediumRef

    renderer = Renderer(processor)
    rows = []
    for i, wanted in enumerate(kinds):
        kind = wanted if wanted in renderer._tokens else "text"
        text = Part("text", text="how many " + "red " * i + "things")
        parts = (text,) if kind == "text" else (Part(kind, medium=0), text)
        answer = Message(
            "assistant", (Part("text", text="<think>a</think><answer>" + "b " * i + "</answer>"),)
        )
        refs = () if kind == "text" else (MediumRef(kind, f"{i}"),)
        sample = Sample(f"m:{i}", "m", (Message("user", parts), answer), refs, solution="2")
        noise = np.random.default_rng(i)
        media = {
            "text": [],
            "image": [_picture(i)],
            "video": [
                DecodedMedium(
                    "video",
                    f"{i}",
                    frames=noise.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8),
                    timestamps=np.arange(frames) * 0.5,
                )
            ],
            "audio": [
                DecodedMedium(
                    "audio",
                    f"{i}",
                    waveform=noise.standard_normal(round(seconds * 16_000)).astype(np.float32) * 0.1,
                    sampling_rate=16_000,
                )
            ],
        }
        rows.append(sft_sample(renderer.full(sample, media[kind])))
    return rows


def _picture(i: int) -> DecodedMedium:
    from PIL import Image

    return DecodedMedium("image", f"{i}.png", image=Image.new("RGB", (64, 64), (40 * i % 255, 90, 10)))
