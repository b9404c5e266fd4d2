"""Muon for hidden matrices, AdamW for everything else, behind the face of one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps along the orthogonalized momentum of a
matrix; torch ships it. Embeddings, positions, norms and biases stay with AdamW. Matrices' updates are brought to the
RMS of AdamW's (Liu et al. 2025, arXiv:2502.16982, section 2.2), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MATRICES, REST = "matrices", "rest"


class MuonAndAdamW(torch.optim.Optimizer):
    """Two optimizers whose groups lie side by side in `param_groups`.

    Example: `MuonAndAdamW([{"params": [w], "lr": 1e-3, "weight_decay": 0.01}], lr=1e-3, betas=(0.9, 0.95), scale=1.0)`
    steps w [128, 64] by Muon; a group with no weight decay goes to AdamW, whatever its shapes.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], scale: float
    ) -> None:
        """`groups` as `parameter_groups` makes them; `scale` times a group's rate is that of its matrices."""
        self._parts: dict[str, torch.optim.Optimizer] = {}
        matrices, rest = [], []
        for group in groups:
            fit = [p for p in group["params"] if is_matrix(p) and not group["name"].endswith("/no_decay")]
            taken = set(map(id, fit))
            others = [p for p in group["params"] if id(p) not in taken]
            matrices += [group | {"params": fit, "lr": group["lr"] * scale}] if fit else []
            rest += [group | {"params": others}] if others else []
        if matrices:
            self._parts[MATRICES] = torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
        if rest:
            self._parts[REST] = torch.optim.AdamW(rest, lr=lr, betas=betas, fused=True)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The groups are the parts' own, so that a rate that is set here is theirs."""
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both. A closure is refused.

        Raises:
            ValueError: a closure was given.
        """
        if closure is not None:
            raise ValueError("MuonAndAdamW takes no closure; compute gradients first, then call step()")
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states, by part."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: the state is another optimizer's.
        """
        if set(state_dict) != set(self._parts):
            raise ValueError(
                f"the checkpoint's optimizer state has {sorted(state_dict)}, optimizer: muon wants "
                f"{sorted(self._parts)}; resume with the optimizer that the stage was begun with"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self._share()


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether Muon can step it: two dimensions, neither of them one."""
    return parameter.ndim == 2 and min(parameter.shape) > 1
