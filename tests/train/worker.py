"""One process of the equality tests: three steps on this rank's share of the rows, then the parameters to a file.

Started by torchrun or plainly: `worker.py MODEL_DIR OUT.safetensors KIND MAX_TOKENS`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmreason.plugins import load_plugins
from mmreason.schema import ModelConfig, SFTStage
from mmreason.train.distributed import leave, make_backend, shard
from mmreason.train.optim import make_optimizer, make_schedule
from mmreason.train.step import Objective, Trainer, train_step


def main(model_dir: str, out: str, kind: str, max_tokens: int) -> None:
    """Train three SGD steps and save what came out."""
    from mmreason.model.load import load_model
    from mmreason.model.parts import parameter_groups
    from tests.train.rows import grpo_rows, sft_rows

    torch.set_num_threads(1)
    load_plugins(["mmreason_encoders"])
    backend = make_backend("auto")
    config = ModelConfig(model_name_or_path=model_dir)
    loaded = load_model(config, texts=lambda: [], seed=0)
    rows = sft_rows(loaded.processor) if kind == "sft" else grpo_rows(loaded.processor)
    if kind == "grpo":  # whole groups stay on one rank
        groups = [rows[i : i + 2] for i in range(0, len(rows), 2)]
        mine = [row for group in shard(groups, backend) for row in group]
    else:
        mine = shard(rows, backend)
    stage = SFTStage(type="sft", name="s", data=[], learning_rate=0.5, optimizer="sgd")
    trainer = Trainer(
        model=loaded.model,
        family=loaded.family,
        backend=backend,
        optimizer=make_optimizer(parameter_groups(loaded.model, loaded.family, config, 0.5, 0.0), stage),
        schedule=make_schedule("constant", 0.0),
        pad_id=0,
        max_grad_norm=1e9,
        max_tokens=max_tokens,
    )
    for step in range(3):
        train_step(trainer, mine, Objective(epsilon_high=0.28), step / 3)
    if backend.is_main:
        save_file({k: v.detach().clone() for k, v in loaded.model.named_parameters()}, out)
    del trainer  # it holds the wrapped model: see DDPBackend.close
    backend.close()


if __name__ == "__main__":
    main(sys.argv[1], str(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4]))
    leave()
