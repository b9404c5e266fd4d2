"""DeepSpeed behind the backend's few methods; the only module that imports it.

DeepSpeed averages gradients over ranks and would divide by its own count of micro-batches; the loss is multiplied by
the world size and the other division is turned off, so that what reaches the optimizer is the gradient of the loss
that the step gave.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from mmreason.train.deepspeed_config import DeepSpeedConfig
from mmreason.train.deepspeed_states import gathered, scatter
from mmreason.train.distributed import OPTIMIZER, WAIT, Ranks

LEFT_ON_MODULES = ("_external_params", "_original_parameters", "pre_bwd_fn", "post_bwd_fn")


def _deepspeed() -> Any:
    """The package, told what machine it is on before it looks for itself."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    from deepspeed import ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # an extension for CPUs that is compiled when it is first wanted; gloo does without
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class _Root(nn.Module):
    """Stands around the model while an engine has it, so that what the engine hooks onto its root goes with it."""

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


class _Called(nn.Module):
    """What the training forward calls: the engine; `module` is the model, as DDP has it."""

    engine: Any
    module: nn.Module
    logits: Any  # of the latest forward pass

    def __init__(self, engine: Any, model: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(engine=engine, module=model, logits=None)

    def forward(self, **inputs: Any) -> Any:
        out = self.engine(**inputs)
        self.__dict__["logits"] = out.logits
        return out


class DeepSpeedBackend(Ranks):
    """ZeRO 0 to 3 and offload, by configuration; one process or several."""

    lockstep = True
    _called: _Called | None = None
    _gathered = False  # all parameters are there, in `whole`

    def __init__(self, config: DeepSpeedConfig, wait: float = WAIT) -> None:
        super().__init__(wait)
        self.config = config
        self.gathers = config.stage == 3
        self._deepspeed = _deepspeed()
        kind = "nccl" if self.device.type == "cuda" else "gloo"
        self._deepspeed.init_distributed(dist_backend=kind, auto_mpi_discovery=False, verbose=False)

    @property
    def engine(self) -> Any:
        """The engine of the present stage."""
        assert self._called is not None, "no model is wrapped"
        return self._called.engine

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> nn.Module:
        assert self._called is None, "the last stage's model has not been released"
        settings = self.config.for_stage(max_grad_norm, cuda=self.device.type == "cuda")
        engine, *_ = self._deepspeed.initialize(model=_Root(model), optimizer=optimizer, config=settings)
        self._called = _Called(engine, model)
        return self._called

    def backward(self, loss: torch.Tensor, *, last: bool = True) -> None:
        assert self._called is not None
        logits = self._called.logits
        self._called.__dict__["logits"] = None
        if logits.shape[1] == 1:
            # With shared prompts the loss comes from hidden states, not from what the engine's forward gave; but the
            # engine begins its backward pass only when a gradient comes through that.
            loss = loss + logits.sum() * 0.0
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def update(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> float:
        engine = self.engine
        if self.config.stage:
            engine.step()
            # the engine itself leaves weights and moments alone where the norm is not finite
            return float(engine.get_global_grad_norm())
        norm = float(nn.utils.clip_grad_norm_(self._trainable(), max_grad_norm))
        if math.isfinite(norm):
            engine.step()
        engine.zero_grad()
        return norm

    def _trainable(self) -> list[nn.Parameter]:
        assert self._called is not None
        return [p for p in self._called.module.parameters() if p.requires_grad]

    # --- what lies in pieces

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parameters on every rank, gathered once; under it modules run without gathering or freeing anything."""
        if self._called is None or self.config.stage < 3:
            yield
            return
        offload = self.engine.optimizer.parameter_offload
        with ExitStack() as stack:
            gathered = self._deepspeed.zero.GatheredParameters(list(self._called.module.parameters()))
            stack.enter_context(gathered)
            stack.callback(_hook_again, offload)
            _unhook(offload)
            self._gathered = True
            stack.callback(setattr, self, "_gathered", False)
            yield

    def apart(self) -> bool:
        return self._called is not None and self.config.stage == 3 and not self._gathered

    @contextmanager
    def in_pieces(self) -> Iterator[None]:
        coordinator = self.engine.optimizer.parameter_offload.get_param_coordinator()
        _forget_trace(coordinator)  # so that nothing of what runs now is recorded as a part of a step
        yield
        _forget_trace(coordinator)

    def room_for_all(self) -> bool:
        assert self._called is not None
        parameters: Any = self._called.module.parameters()
        needed = sum(p.ds_numel * p.element_size() for p in parameters)
        return 1.5 * needed < self._free()

    def _free(self) -> int:
        """Bytes that this rank can still take."""
        if self.device.type != "cuda":
            return psutil.virtual_memory().available // int(
                os.environ.get("LOCAL_WORLD_SIZE", self.world_size)
            )
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + unused

    def release(self) -> None:
        if self._called is None:
            return
        model, engine = self._called.module, self.engine
        with self.whole():
            plain = {id(p): _plain(p) for p in model.parameters()}
        engine.destroy()
        for module in model.modules():
            module._parameters = {
                name: None if p is None else plain[id(p)] for name, p in dict.items(module._parameters)
            }
            for name in [n for n in vars(module) if n.startswith("ds_") or n in LEFT_ON_MODULES]:
                delattr(module, name)
        self._called = None

    # --- checkpoints

    def save_optimizer(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """Moments, step counts and float32 weights, whole and by parameter: for any number of processes."""
        assert self._called is not None
        stage = self.config.stage
        if not stage:
            super().save_optimizer(folder, optimizer)
            return
        states = gathered(self.engine, self._called.module, stage, keep=self.is_main)
        if self.is_main:
            torch.save(states, folder / OPTIMIZER)

    def load_optimizer(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        assert self._called is not None
        if not self.config.stage:
            super().load_optimizer(folder, optimizer)
            return
        states = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu", mmap=True)
        scatter(self.engine, self._called.module, self.config.stage, states)

    def close(self) -> None:
        self.release()
        super().close()


def _plain(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of its own with the same values, of which no engine knows."""
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _unhook(offload: Any) -> None:
    """Let modules run on parameters that are gathered already, freeing none of them."""
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hooks in (offload.forward_hooks, offload.backward_hooks):
        for hook in hooks:
            hook.remove()
        hooks.clear()


def _hook_again(offload: Any) -> None:
    _forget_trace(offload.get_param_coordinator())  # what ran meanwhile was not in it
    offload._register_deepspeed_module(offload.module)


def _forget_trace(coordinator: Any) -> None:
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
