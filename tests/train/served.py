"""A GRPO run of a tiny native model whose completions come from vLLM, and what two such runs are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmreason.schema import Recipe
from tests.train import small


def served_recipe(
    out: Path, rows: Path, folder: Path, url: str, stage: dict[str, Any] | None = None, **rollout: Any
) -> Recipe:
    """Three rollouts, each used twice, on pictures, two and none."""
    grpo = {"type": "grpo", "name": "grpo", "data": ["rows"], "max_steps": 6, "num_generations": 8}
    grpo |= {"learning_rate": 5e-3, "per_device_train_batch_size": 24, "max_completion_length": 12}
    grpo |= {"reward_funcs": [small.REWARD], "warmup_ratio": 0.0, "beta": 0.02, "num_iterations": 2}
    grpo |= {"save_steps": 100, "lr_scheduler_type": "constant"}
    return Recipe.model_validate(
        {
            "output_dir": str(out),
            "max_bad_fraction": 0.5,
            "num_threads": 1,
            "model": {"model_name_or_path": str(folder)},
            "data": {"rows": {"path": str(rows)}},
            "stages": [grpo | (stage or {})],
            "rollout": {"engine": "vllm", "base_url": url, "max_wait": 20.0, **rollout},
        }
    )


def told(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the machine and the server went through."""
    went = ("rollout/pushes", "rollout/retries", "rollout/restarts")
    return [{k: v for k, v in line.items() if k not in went} for line in small.metrics(run)]


def assert_same(one: Path, other: Path) -> None:
    """Metrics, completions and the final weights of two runs without evaluation."""
    assert told(one) == told(other)
    assert small.same_weights(one / "model", other / "model")
    assert small.completions(one) == small.completions(other)
