"""One call of an encoder, taken apart by medium: what is each one's own, and how the rows of the output belong to them.

Encoders take media in one of three ways: one row each; patches one behind the other with a grid for each medium
(Qwen-VL); spectrograms one behind the other along time with a length for each (Qwen2.5-Omni's ears).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# numbers (of pixels, or of a spectrogram) that a frozen tower is given at once: beyond them a CPU's caches gain nothing
AT_ONCE, AT_ONCE_ON_CPU = 2**23, 2**19
UNKNOWN = "its media cannot be told apart"


@dataclass(frozen=True)
class TowerCall:
    """`parts[i]` are the tensors that are medium i's own ("": given without a name).

    Example: two pictures as rows are `TowerCall([{"": x[:1]}, {"": x[1:]}], {}, None, ("last_hidden_state",))`.
    """

    parts: list[dict[str, torch.Tensor]]
    rest: dict[str, Any]  # the same for all media
    rows: list[int] | None  # of the output, in proportion, each medium's; None: one row each
    fields: tuple[str, ...]  # of the output that is read
    along: int = 0  # the dimension in which media stand in what is given without a name

    def in_batches(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """Some of the media, in their order, as many at once as one call of a frozen tower takes."""
        main = next(iter(self.parts[0]))
        most = AT_ONCE_ON_CPU if self.parts[0][main].device.type == "cpu" else AT_ONCE
        batch: list[int] = []
        numbers = 0
        for i in chosen:
            numbers += self.parts[i][main].numel()
            if batch and numbers > most:
                yield batch
                batch, numbers = [], self.parts[i][main].numel()
            batch.append(i)
        if batch:
            yield batch

    def of(self, tower: nn.Module, chosen: Sequence[int]) -> Any:
        """What the tower makes of some of the media, called as it was."""
        tensors = {
            name: torch.cat([self.parts[i][name] for i in chosen], dim=0 if name else self.along)
            for name in self.parts[0]
        }
        first = [tensors.pop("")] if "" in tensors else []
        return tower(*first, **tensors, **self.rest)


def taken_apart(tower: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerCall | str:
    """A call by medium, or why that cannot be."""
    grid = kwargs.get("grid_thw", args[1] if len(args) == 2 else None)
    main: Any = args[0] if args else next((x for x in kwargs.values() if isinstance(x, torch.Tensor)), None)
    rest = {n: x for n, x in kwargs.items() if not isinstance(x, torch.Tensor)}
    tensors = {n: x for n, x in kwargs.items() if isinstance(x, torch.Tensor) and x is not grid}
    tensors = ({"": main} if args else {}) | tensors
    if any(rest.get(name) for name in ("output_hidden_states", "output_attentions")):
        return "more than its last states is asked for"
    if main is None or not len(main) or len(args) > (1 if grid is None else 2):
        return UNKNOWN
    if grid is not None:
        return _by_grids(main, grid, tensors, rest)
    if "feature_lens" in tensors:
        return _by_lengths(tower, tensors, rest)
    if main.ndim < 3 or any(len(x) != len(main) for x in tensors.values()):
        return UNKNOWN
    parts = [{n: x[i : i + 1] for n, x in tensors.items()} for i in range(len(main))]
    return TowerCall(parts, rest, None, ("last_hidden_state",))


def _by_grids(
    main: torch.Tensor, grid: torch.Tensor, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> TowerCall | str:
    """Patches [P, D] and what of each medium they are, int64 [N, 3]."""
    if len(tensors) > 1 or int(grid.prod(-1).sum()) != len(main):
        return "it is called with more than patches and their grids"
    sizes = grid.prod(-1).tolist()
    (name,) = tensors
    pieces = zip(main.split(sizes), grid.split(1), strict=True)
    parts = [{name: x, "grid_thw": g} for x, g in pieces]
    return TowerCall(parts, rest, sizes, ("pooler_output", "deepstack_features"))


def _by_lengths(tower: Any, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> TowerCall | str:
    """Spectrograms [mel, T] and how long each is, int64 [N]; the tower says how many rows it makes of that."""
    main, lengths = tensors.get(""), tensors["feature_lens"]
    told = getattr(tower, "_get_feat_extract_output_lengths", None)
    others = {name: x for name, x in tensors.items() if name}
    if main is None or told is None or any(len(x) != len(lengths) for x in others.values()):
        return UNKNOWN
    sizes = lengths.tolist()
    if main.ndim != 2 or sum(sizes) != main.shape[1]:
        return UNKNOWN
    rows = told(lengths)[1].tolist()
    parts = [
        {"": x, **{name: other[i : i + 1] for name, other in others.items()}}
        for i, x in enumerate(main.split(sizes, dim=1))
    ]
    return TowerCall(parts, rest, rows, ("last_hidden_state", "pooler_output"), along=1)
