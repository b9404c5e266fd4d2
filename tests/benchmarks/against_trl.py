"""A whole GRPO step of this project against one of TRL's GRPOTrainer: the same checkpoint, prompts, group and lengths.

    python tests/benchmarks/against_trl.py --json F [--rounds 3] [--image-tokens 1024] [--new-tokens 64]

Needs the extra `bench`. Both sides take turns in one process, TRL first, one warm-up each; a step is prompts to new
weights. TRL is at its defaults, but for gradient checkpointing and bfloat16, which are off on both sides; beta is 0.
Completions of both sides have exactly `new_tokens` tokens: the end tokens are banned. `ratio` is TRL's median over
ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmreason.bench.measure import Times, compared, environment, peak_rss
from mmreason.bench.reward import varied
from mmreason.bench.steps import grpo_step
from mmreason.bench.work import QUESTION, Shape, picture, workplace


def main() -> None:
    """Measure, print, and write `--json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image-tokens", type=int, default=Shape.image_tokens)
    parser.add_argument("--new-tokens", type=int, default=Shape.new_tokens)
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    shape = Shape(image_tokens=given.image_tokens, new_tokens=given.new_tokens)
    text = json.dumps(measured(shape, given.rounds), indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")


def measured(shape: Shape, rounds: int) -> dict[str, Any]:
    """`{trl_s, mmreason_s, ratio, versions, shape, ...}`."""
    import datasets
    import trl

    times = {"trl": Times(), "mmreason": Times()}
    lengths: dict[str, list[int]] = {"trl": [], "mmreason": []}
    with workplace(shape) as folder:
        ours = grpo_step(shape, folder, "auto")

        def turn() -> None:
            """Our step, after one of TRL's."""
            with times["mmreason"].taking():
                metrics = ours()
            lengths["mmreason"].append(int(metrics["tokens/learned"]))

        _train_with_trl(shape, folder, rounds + 1, times["trl"], turn, lengths["trl"])
    warm = {name: Times(side.wall[1:], side.cpu[1:]) for name, side in times.items()}
    versions = {"trl": trl.__version__, "datasets": datasets.__version__}
    versions |= {name: environment()[name] for name in ("torch", "transformers", "python")}
    expected = shape.group * shape.new_tokens
    if {*lengths["trl"], *lengths["mmreason"]} != {expected}:
        raise ValueError(f"the two sides must learn {expected} tokens a step; they learned {lengths}")
    return {
        "bench": "against_trl",
        **compared(warm, "trl", "mmreason"),
        "completion_tokens": expected,
        "versions": versions,
        "shape": shape.as_dict(),
        "peak_rss_bytes": peak_rss(),
        "environment": environment(),
    }


def _train_with_trl(
    shape: Shape,
    folder: Path,
    steps: int,
    times: Times,
    after: Callable[[], None],
    lengths: list[int],
) -> None:
    """Let TRL's trainer do `steps` steps, each timed by itself, and call `after` behind each."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    processor = AutoProcessor.from_pretrained(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = processor.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    banned = sorted(set(tokenizer.all_special_ids) | ends)
    question = [{"role": "user", "content": QUESTION}]
    rows = [{"prompt": question, "image": picture(shape, number)} for number in range(4 * shape.prompts)]

    def reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        lengths.append(sum(map(len, completion_ids)))
        return varied(completions)

    class Turns(TrainerCallback):
        """A step of TRL's ends when it says so, and begins when ours has ended."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.round = times.taking()
            self.round.__enter__()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.round.__exit__(None, None, None)
            after()
            self.on_train_begin()

    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=shape.group * shape.prompts,
        gradient_accumulation_steps=1,
        num_generations=shape.group,
        max_completion_length=shape.new_tokens,
        generation_kwargs={"suppress_tokens": banned},
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_steps=steps,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        callbacks=[Turns()],
    ).train()


if __name__ == "__main__":
    main()
