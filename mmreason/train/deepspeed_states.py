"""The optimizer's states under ZeRO, whole and by parameter: a checkpoint that any number of processes can go on from.

DeepSpeed's own checkpoints are read back by as many processes as wrote them. Its universal ones, with ZeRO-3, know
Adam's moments only and give every parameter group the rates of the first (seen with DeepSpeed 0.19.8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

WEIGHT = "weight"  # the float32 weight beside one in bfloat16
STEP = "step"
States = dict[
    str, dict[str, torch.Tensor]
]  # parameter's name -> state's name -> a tensor of the parameter's shape


@dataclass(frozen=True)
class _Piece:
    """Where this rank keeps a part of a parameter's states: behind each other in one row of numbers.

    Example: `_Piece(flat, at=100, begin=0, count=10)`: numbers 0 to 9 of the parameter are at 100 to 109 of `flat`.
    """

    flat: torch.Tensor
    at: int
    begin: int
    count: int


def gathered(engine: Any, model: nn.Module, stage: int, *, keep: bool) -> States:
    """The states of every parameter that learns, in the CPU's memory; empty where `keep` is false. All ranks call it.

    One parameter's states are whole on every rank at a time.
    """
    zero = engine.optimizer
    names = _names(zero, stage)
    step = _step(zero, stage)
    found: States = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        mine = _piece(zero, stage, parameter)
        whole = {key: _whole(zero, mine, parameter, key, engine.device) for key in names}
        if parameter.dtype != torch.float32:
            whole[WEIGHT] = _whole(zero, mine, parameter, WEIGHT, engine.device)
        if keep:
            found[name] = {key: tensor.cpu() for key, tensor in whole.items()}
            if step is not None:
                found[name][STEP] = step.clone()
    return found


def scatter(
    engine: Any, model: nn.Module, stage: int, states: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """The inverse of `gathered`: each rank takes its part, however many there are.

    Raises:
        ValueError: the states are of other parameters.
    """
    zero = engine.optimizer
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if learning.keys() != states.keys():
        odd = sorted(learning.keys() ^ states.keys())[:3]
        raise ValueError(
            f"the checkpoint's optimizer states are of other parameters than those that learn now ({', '.join(odd)} "
            "...); go on with the recipe that wrote it"
        )
    for name, parameter in learning.items():
        mine = _piece(zero, stage, parameter)
        for key, value in states[name].items() if mine is not None else ():
            assert mine is not None
            if key == STEP:
                zero.optimizer.state[mine.flat][STEP] = value.clone()
                continue
            row = mine.flat.data if key == WEIGHT else zero.optimizer.state[mine.flat].get(key)
            if row is None:
                row = zero.optimizer.state[mine.flat][key] = torch.zeros_like(mine.flat.data)
            row[mine.at : mine.at + mine.count] = value.flatten()[mine.begin : mine.begin + mine.count].to(
                row.device
            )


def _flats(zero: Any, stage: int) -> list[torch.Tensor]:
    """The rows of numbers that the optimizer updates on this rank."""
    if stage == 3:
        return list(zero.fp32_partitioned_groups_flat)
    return [group["params"][0] for group in zero.optimizer.param_groups]


def _piece(zero: Any, stage: int, parameter: Any) -> _Piece | None:
    """This rank's part of a parameter; None: it has none."""
    if stage == 3:
        group, at, numbers = zero.grad_position[zero.get_param_id(parameter)]
        begin = numbers * dist.get_rank(zero.dp_process_group)
        count = min(numbers, parameter.ds_numel - begin)  # the last parts are filled up
        return _Piece(zero.fp32_partitioned_groups_flat[group], at, begin, count) if count > 0 else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = zero.optimizer.param_groups[mapping.param_group_index]["params"][0]
    return _Piece(flat, here.start, there.start, here.numel)


def _whole(zero: Any, mine: _Piece | None, parameter: Any, key: str, device: torch.device) -> torch.Tensor:
    """One state of one parameter, of the ranks' parts."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    out = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
    if mine is not None:
        row = mine.flat.data if key == WEIGHT else zero.optimizer.state[mine.flat][key]
        out[mine.begin : mine.begin + mine.count] = row[mine.at : mine.at + mine.count].to(device)
    dist.all_reduce(out)
    return out.view(shape)


def _states(zero: Any, stage: int) -> Iterator[dict[str, Any]]:
    yield from (zero.optimizer.state[flat] for flat in _flats(zero, stage) if flat in zero.optimizer.state)


def _names(zero: Any, stage: int) -> list[str]:
    """States with a number for each weight: none before the first update. Every rank has them of the same names."""
    found = next(_states(zero, stage), {})
    return sorted(key for key, value in found.items() if torch.is_tensor(value) and value.ndim)


def _step(zero: Any, stage: int) -> torch.Tensor | None:
    """The count of updates, which all parameters share: none is ever left out of one."""
    found = next(_states(zero, stage), {}).get(STEP)
    return None if found is None else torch.as_tensor(found).cpu()
