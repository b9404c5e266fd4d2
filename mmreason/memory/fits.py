"""What GRPO of published model shapes needs on each GPU, predicted without weights and without data.

`python -m mmreason.memory.fits` prints what docs/scale.md tells in one table; it takes a quarter of an hour of a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmreason.memory.estimate import Memory, Peaks, Rows, estimate, rehearse
from mmreason.memory.rehearsal import stand_in
from mmreason.model.family import family_of
from mmreason.model.load import Loaded
from mmreason.model.parts import freeze
from mmreason.schema import Recipe
from mmreason.types import Rendered

SIDE = 16  # tokens of a frame's side: 448 x 448 pixels, of which two frames make one
TEXT, WRITTEN = 128, 512  # tokens of a question, and of a completion
# hidden, layers, heads, key/value heads, intermediate, vocabulary, whether the head is the embedding
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "Qwen2.5-VL-3B": (2048, 36, 16, 2, 11008, 151936, True),
    "Qwen2.5-VL-7B": (3584, 28, 28, 4, 18944, 152064, False),
}
DEPTH = 32  # blocks of the vision tower; to go through REHEARSED is enough, since it keeps nothing
REHEARSED = 2
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"model": {"use_peft": True}},
    "whole LLM, zero2": {"deepspeed": "zero2"},
    "whole LLM, zero2_offload": {"deepspeed": "zero2_offload"},
    "whole LLM, zero3": {"deepspeed": "zero3"},
}


@dataclass(frozen=True)
class Fit:
    """One row of the table.

    Example: `Fit("Qwen2.5-VL-7B", "LoRA", 16, 2176, 8, 1, 21 * 10**9, "training", 0)`.
    """

    model: str
    way: str
    frames: int
    tokens: int  # of the prompt
    group: int
    gpus: int
    gpu_bytes: int  # in the largest moment
    moment: str  # which that is
    cpu_bytes: int  # offloaded, for each GPU


def fits(
    models: Sequence[str], frames: Sequence[int], groups: Sequence[int], gpus: Sequence[int]
) -> Iterator[Fit]:
    """Every way to train each model: tower frozen, bfloat16 weights, activations recomputed, one group a step.

    LoRA needs the same on every GPU, whatever their number; it is told once, of one.

    Raises:
        ValueError: a model that is not among SHAPES, or an odd number of frames.
    """
    for name in models:
        loaded = without_weights(name)
        for shown in frames:
            for group in groups:
                known: dict[str, Peaks] = {}  # offloading changes no moment of the step
                for way in WAYS:
                    for count in gpus if way != "LoRA" else [1]:
                        alike = way.removesuffix("_offload")
                        row = film(loaded, shown)
                        memory, known[alike] = predicted(loaded, row, way, group, count, known.get(alike))
                        moment = max(memory.moments, key=lambda m: memory.moments[m])
                        told = (memory.total, moment, memory.offloaded)
                        yield Fit(name, way, shown, len(row), group, count, *told)


def longest(short: Fit, long: Fit, room: int) -> int:
    """Tokens of the longest prompt of a film that fits into `room` bytes of a GPU, by the line through two others.

    No tensor has the prompt's length squared, so that a stage's largest moment grows evenly once it stays the same one;
    before that, less. The two are best long themselves.

    Example: 20 GB at 2,000 tokens and 21 GB at 12,000 leave room for 602,000 in 80 GB.
    """
    slope = (long.gpu_bytes - short.gpu_bytes) / (long.tokens - short.tokens)
    return int(short.tokens + (room - short.gpu_bytes) / slope)


def predicted(
    loaded: Loaded, row: Rendered, way: str, group: int, gpus: int, peaks: Peaks | None = None
) -> tuple[Memory, Peaks]:
    """What one of `gpus` needs to train on `group` completions of a prompt; `peaks` of the same row, way and group."""
    recipe = _recipe(way, group, len(row))
    banned, rows = loaded.family.placeholder_ids, Rows(row, (len(row),))
    (stage,) = recipe.stages
    if peaks is None:
        stand = stand_in(without_weights(loaded.model.name_or_path, REHEARSED), recipe.model, 0, banned)
        freeze(stand.model, stand.family, recipe.model)
        peaks = rehearse(stand, recipe, stage, rows, spread=recipe.deepspeed is not None)
    memory = estimate(
        loaded,
        recipe,
        stage,
        rows,
        pad_id=0,
        banned=banned,
        seen=1,
        world=gpus,
        on_cpu=False,
        rehearsed=peaks,
    )
    return memory, peaks


def _recipe(way: str, group: int, prompt: int) -> Recipe:
    model = {"model_name_or_path": "published", "torch_dtype": "bfloat16", "freeze_vision_tower": True}
    keys = dict(WAYS[way])
    stage = {
        "type": "grpo",
        "name": "grpo",
        "data": ["rows"],
        "per_device_train_batch_size": group,
        "num_generations": group,
        "max_completion_length": WRITTEN,
        "max_prompt_length": prompt,
        "gradient_checkpointing": True,
        "evaluate": False,
    }
    return Recipe.model_validate(
        {
            "output_dir": "nowhere",
            "model": model | keys.pop("model", {}),
            "data": {"rows": {"path": "rows.jsonl"}},
            "stages": [stage],
            "shared_prefix_check": False,  # told apart in docs/scale.md
            **keys,
        }
    )


def without_weights(name: str, depth: int = DEPTH) -> Loaded:
    """A published shape on the meta device, its vision tower of so many blocks.

    Raises:
        ValueError: none of SHAPES.
    """
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}; there are {sorted(SHAPES)}")
    hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = SHAPES[name]
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate,
            "vocab_size": vocabulary,
            "max_position_embeddings": 128000,
            "rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "out_hidden_size": hidden,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "depth": depth,
            "fullatt_block_indexes": [depth - 1],
        },
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    model.name_or_path = name
    processor = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=dict))
    return Loaded(model, processor, family_of(model, processor))


def film(loaded: Loaded, frames: int) -> Rendered:
    """A prompt of one film and TEXT tokens.

    Raises:
        ValueError: an odd number of frames.
    """
    if frames % 2:
        raise ValueError(f"{frames} frames: two frames make one, so give an even number")
    config = loaded.model.config
    tokens = frames // 2 * SIDE**2
    ids = torch.full((tokens + TEXT,), 1)
    ids[:tokens] = config.video_token_id
    types = ids.eq(config.video_token_id).long() * 2
    patches = tokens * config.vision_config.spatial_merge_size**2
    width = 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2
    media = {
        "pixel_values_videos": torch.empty(patches, width),
        "video_grid_thw": torch.tensor([[frames // 2, 2 * SIDE, 2 * SIDE]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }
    nothing = torch.zeros_like(ids)
    return Rendered("film", ids, nothing.to(torch.int8), nothing.bool(), types, media)


def main(given: Sequence[str] | None = None) -> None:
    """Print the table of bytes and that of the longest prompts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--frames", nargs="+", type=int, default=[16, 128, 256])
    parser.add_argument("--group", nargs="+", type=int, default=[8])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--memory-gb", type=float, default=80.0)
    args = parser.parse_args(given)
    room = args.memory_gb * 1e9
    found: dict[tuple[Any, ...], list[Fit]] = {}
    print("| model | trained | frames | G | GPUs | GB on each GPU (in) | GB of RAM for each |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for fit in fits(args.model, args.frames, args.group, args.gpus):
        count = "any" if fit.way == "LoRA" else fit.gpus
        size = f"{fit.gpu_bytes / 1e9:.1f}"
        size = f"**{size}**" if fit.gpu_bytes > room else size
        row = (fit.model, fit.way, fit.frames, fit.group, count, f"{size} ({fit.moment})")
        print(f"| {' | '.join(map(str, row))} | {fit.cpu_bytes / 1e9:.1f} |", flush=True)
        found.setdefault((fit.model, fit.way, fit.group, count), []).append(fit)
    print(f"\n| model | trained | G | GPUs | longest prompt in {args.memory_gb:g} GB, tokens |")
    print("|---|---|---|---|---|")
    for names, told in found.items():
        tokens = longest(told[-2], told[-1], int(room)) if len(told) > 1 else 0
        if tokens > 0:
            print(f"| {' | '.join(map(str, names))} | {tokens:,} |")


if __name__ == "__main__":
    main()
