"""The golden per-step numbers: `python -m tests.train.golden_run` writes them again after a wanted change.

The run trains on PNG files of one colour, not on a world, so that only training's own numbers can change them.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from mmreason.train import folder
from mmreason.train.run import train
from tests.train import small
from tests.train.pictures import write_pictures

FOLDER = Path(__file__).with_name("golden")
KEPT = {"loss", "grad_norm", "learning_rate", "entropy", "tokens/learned", "nll", "kl", "token_weight/mean"}
KEPT |= {"reward", "reward_std", "clip_ratio/region_mean", "completions/mean_length"}


def numbers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage -> the kept numbers of each of its steps; trains in `out`."""
    rows = str(write_pictures(out / "rows"))
    sft = small.SFT | {"data": ["rows"], "replay": {"again": 0.25}}
    grpo = small.GRPO | {"data": ["rows"]}
    data = {"rows": {"path": rows}, "again": {"path": rows}}
    train(small.recipe(out / "run", data=data, stages=[sft, grpo], eval={"data": []}))
    lines = small.metrics(out / "run")
    return {
        stage: [{k: v for k, v in line.items() if k in KEPT} for line in lines if line["stage"] == stage]
        for stage in ("sft", "grpo")
    }


def main() -> None:
    """Write golden/sft.json and golden/grpo.json."""
    torch.manual_seed(0)
    folder.write_probe = lambda *args: None  # type: ignore[assignment]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for stage, lines in numbers(Path(scratch)).items():
            (FOLDER / f"{stage}.json").write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
