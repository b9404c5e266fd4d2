"""A few steps by one engine or another, in one process or in two that talk over gloo; the parameters that come out."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import mmreason_encoders  # noqa: F401  registers the architectures, once for all processes
from mmreason.model.load import load_model
from mmreason.model.parts import parameter_groups
from mmreason.model.save import save_model
from mmreason.render import Renderer
from mmreason.rollout import generate as plain
from mmreason.rollout.forked import generate
from mmreason.rollout.sampling import SamplingParams
from mmreason.schema import ModelConfig, RolloutConfig, SFTStage, SharedPrefix
from mmreason.train import step
from mmreason.train.apart import complete_in_step, gathering
from mmreason.train.deepspeed_config import DeepSpeedConfig, _settings
from mmreason.train.distributed import Backend, DDPBackend, leave, make_backend
from mmreason.train.micro import Sharing
from mmreason.train.optim import make_optimizer, make_schedule
from mmreason.train.step import Objective, Trainer, train_step
from mmreason.train.together import shower
from mmreason.types import Rendered, TrainingSample
from tests.train.rows import grpo_rows, mixed_rows, sft_rows

SECONDS = 60.0  # a rank that waits longer for another one is an error
# nothing stays gathered, as in a model that is large: small ones would hide a rank that goes its own way
RELEASING = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
# tokens of the completions of each group: the first half writes long ones, the second half short ones
LENGTHS = [(60, 2), (45, 9), (2, 1), (3, 1)]
SLICED = ("ids", "roles", "sampled", "token_types")


@dataclass(frozen=True)
class Case:
    """One training."""

    engine: str  # plain, ddp, or a value of the recipe's deepspeed key
    rows: str = "sft"  # sft, grpo, mixed, or a way in which the two halves differ: pictures, films, lengths
    max_tokens: int = 1  # every row its own micro-batch
    optimizer: str = "sgd"
    lora: bool = False
    sharing: SharedPrefix = "off"
    guard: bool = (
        True  # False: a rank runs its own micro-batches and the encoders they need; it gathers as it decodes
    )
    steps: int = 3
    then: str = "same"  # what steps after the first one learn from: the same rows; `text` those without media
    offload: bool = False  # activations in the CPU's memory
    poisoned: bool = False  # the second step's loss is infinite on the first rank
    apart: bool = False  # completions are written before every step while weights lie apart

    @property
    def name(self) -> str:
        """A file's name."""
        plain = vars(Case("plain"))
        told = {key: value for key, value in vars(self).items() if key != "engine" and value != plain[key]}
        return "-".join([self.engine, *(f"{key}={value}" for key, value in told.items())])


def rows_of(kind: str, processor: Any) -> list[list[TrainingSample]]:
    """Units that stay together on a rank: single rows, or groups."""
    if kind in ("grpo", "lengths"):
        rows = (
            grpo_rows(processor) if kind == "grpo" else grpo_rows(processor, lengths=LENGTHS, pictures=False)
        )
        return [rows[i : i + 2] for i in range(0, len(rows), 2)]
    if kind == "pictures":
        made = mixed_rows(processor, ("image", "image", "text", "text"))
    elif kind == "films":
        made = mixed_rows(processor, ("video", "video", "audio", "audio"), frames=24, seconds=0.2)
    else:
        made = mixed_rows(processor) if kind == "mixed" else sft_rows(processor)
    return [[row] for row in made]


def _prompts(rows: list[TrainingSample]) -> list[Rendered]:
    """What stands before each second row's completion."""
    return [
        replace(row.rendered, **{name: getattr(row.rendered, name)[:begins] for name in SLICED})
        for row in rows[::2]
        for begins in [int(row.rendered.sampled.nonzero()[0])]
    ]


def _decode_apart(trainer: Trainer, renderer: Renderer, rows: list[TrainingSample]) -> None:
    """Completions where memory has no room for all weights are those of the plain rollout, where it has; then once more
    with prompts on the first rank only. The first rank writes more.
    """
    backend: Any = trainer.backend
    params = SamplingParams(20 if backend.is_main else 5, max_rows=3)
    for prompts in (_prompts(rows), _prompts(rows) if backend.is_main else []):
        backend._free = lambda: 1000
        torch.manual_seed(backend.rank)
        with gathering(backend, RolloutConfig()):
            assert backend.apart()
            found = complete_in_step(trainer, renderer, prompts, 2, params)
        del backend._free
        torch.manual_seed(backend.rank)
        with gathering(backend, RolloutConfig()):
            assert not backend.apart()
            wanted = plain.generate(trainer.model, trainer.family, renderer, prompts, 2, params)
        assert [len(group) for group in found] == [2] * len(prompts)
        told = [[[(t.ids.tolist(), t.text, t.finish) for t in g] for g in some] for some in (found, wanted)]
        assert told[0] == told[1]


def _decode(trainer: Trainer, renderer: Renderer, rows: list[TrainingSample], case: Case) -> None:
    """Write completions to the rows' prompts, on the first rank long ones, on the others short ones; none is kept."""
    prompts = _prompts(rows)
    first = LENGTHS[: len(prompts)] if trainer.backend.is_main else LENGTHS[-len(prompts) :]
    limits = torch.tensor(first)
    with trainer.backend.whole() if case.guard else nullcontext():
        generate(
            trainer.model,
            trainer.family,
            renderer,
            prompts,
            2,
            SamplingParams(int(limits.max())),
            limits=limits,
        )


def train(folder: Path, case: Case, backend: Backend) -> tuple[Trainer, list[dict[str, float]]]:
    """The case's steps on this rank's share of its rows."""
    model = ModelConfig(model_name_or_path=str(folder), use_peft=case.lora, lora_r=4, lora_alpha=16)
    loaded = load_model(model, texts=lambda: [], seed=0)
    renderer = Renderer(loaded.processor)
    units = rows_of(case.rows, loaded.processor)
    size = len(units) // backend.world_size  # halves, not every other one: ranks see other modalities
    rows = [row for unit in units[size * backend.rank :][:size] for row in unit]
    rate = {"sgd": 0.5 if case.rows in ("sft", "grpo") else 0.02, "adamw": 1e-3}[case.optimizer]
    stage = SFTStage(type="sft", name="s", data=[], learning_rate=rate, optimizer=case.optimizer)
    groups = parameter_groups(loaded.model, loaded.family, model, rate, 0.0)
    trainer = Trainer(
        model=loaded.model,
        family=loaded.family,
        backend=backend,
        optimizer=make_optimizer(groups, stage),
        schedule=make_schedule("constant", 0.0),
        pad_id=0,
        max_grad_norm=1.0 if case.optimizer == "adamw" else 1e9,
        max_tokens=case.max_tokens,
        sharing=Sharing(case.sharing),
        show=shower(renderer, 16_000),
        offload=case.offload,
    )
    steps = [_rows_of_step(rows, case, backend, step) for step in range(case.steps)]
    metrics = []
    for some in steps:
        if case.apart:
            _decode_apart(trainer, renderer, rows)
        elif case.rows == "lengths":
            _decode(trainer, renderer, rows, case)
        metrics.append(train_step(trainer, some, Objective(epsilon_high=0.28), 0.0))
    return trainer, metrics


def _rows_of_step(
    rows: list[TrainingSample], case: Case, backend: Backend, step: int
) -> list[TrainingSample]:
    if step and case.then == "text":
        rows = [row for row in rows if not row.rendered.media]
    if step == 1 and case.poisoned and backend.is_main:
        rows = [replace(rows[0], ce=rows[0].ce * torch.inf), *rows[1:]]
    return rows


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All parameters, whole."""
    with trainer.backend.whole():
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def alone(folder: Path, case: Case) -> dict[str, torch.Tensor]:
    """What the case gives in this process."""
    backend = make_backend("plain")
    backend.lockstep = (
        case.then == "text"
    )  # what is not used has a gradient of zero, as under DeepSpeed, and not none
    return parameters(train(folder, case, backend)[0])


def backend_of(case: Case, patience: float) -> Backend:
    """The case's backend in one of several processes."""
    if case.engine == "ddp":
        return DDPBackend(patience)
    settings = {"zero_optimization": RELEASING} if case.engine == "zero3" else _settings(case.engine)
    backend = make_backend("auto", DeepSpeedConfig(settings, bf16=False, autocast=False), patience)
    return backend


def in_ranks(
    folder: Path, out: Path, cases: Sequence[Case], world: int = 2, patience: float = SECONDS
) -> list[int | None]:
    """Run the cases one after the other in `world` processes; `CASE.safetensors` in `out`. Exit codes by rank.

    A rank waits `patience` seconds for another one, and is killed a minute a case later.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = (world, port, str(folder), str(out), list(cases), patience)
    ranks = [context.Process(target=_rank, args=(rank, *given)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(patience + 60 * len(cases))
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _rank(
    rank: int, world: int, port: int, folder: str, out: str, cases: list[Case], patience: float
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    agreed = step.together
    for case in cases:
        step.together = agreed if case.guard else lambda trainer, rows, plans: (list(rows), list(plans))
        backend = backend_of(case, patience)
        trainer, metrics = train(Path(folder), case, backend)
        found = parameters(trainer)
        if not case.steps:
            with backend.whole():
                if backend.is_main:
                    save_plain(trainer.model, Path(folder), Path(out) / f"{case.name}-saved")
        backend.release()
        again = {name: p.detach() for name, p in trainer.model.named_parameters()}
        assert all(torch.equal(found[name], p) for name, p in again.items()), "release changed the model"
        if backend.is_main:
            save_file(found, Path(out) / f"{case.name}.safetensors")
            (Path(out) / f"{case.name}.json").write_text(json.dumps(metrics))
    leave()


def save_plain(model: Any, folder: Path, out: Path) -> None:
    """Save a model that was loaded from `folder` as a run saves its own."""
    loaded = load_model(ModelConfig(model_name_or_path=str(folder)), texts=lambda: [], seed=0)
    save_model(model, loaded.processor, out)


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any parameter."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def result(out: Path, case: Case) -> dict[str, torch.Tensor]:
    """The parameters of a case that `in_ranks` ran."""
    return load_file(out / f"{case.name}.safetensors")


def start(folder: Path, case: Case) -> dict[str, torch.Tensor]:
    """The parameters that the case begins with."""
    model = ModelConfig(model_name_or_path=str(folder), use_peft=case.lora, lora_r=4, lora_alpha=16)
    loaded = load_model(model, texts=lambda: [], seed=0)
    return {name: p.detach() for name, p in loaded.model.named_parameters()}


def moved(folder: Path, found: dict[str, torch.Tensor], case: Case) -> float:
    """How far the case's parameters went from where they began."""
    return difference(start(folder, case), found)


def as_whole(case: Case) -> Case:
    """The case in one process, all rows in one micro-batch."""
    return replace(case, engine="plain", max_tokens=100_000, guard=True, apart=False)
