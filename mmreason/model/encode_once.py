"""Each distinct medium passes its encoder once, however many rows, passes and steps ask for it.

While `encode_once` is open, every tower of the model is stood in for by a module that knows which media it has seen.
A frozen tower's features are kept by content, across steps and epochs, for the policy and its reference alike; those of
a call that are not known yet are encoded side by side, some at a time. A tower that learns encodes the distinct media
of each forward pass, and without gradients (rollouts, old log-probabilities) keeps them until its weights change. A
projector inside a tower (Qwen-VL's mergers) that learns above frozen layers runs in every pass, on what those layers
made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmreason.model.family import Family, bare
from mmreason.model.feature_cache import FeatureCache, Made, digest, own_tensors, versions
from mmreason.model.shared_fit import drops

log = logging.getLogger(__name__)
_said: set[str] = set()
# numbers (of pixels, or of a spectrogram) that a frozen tower is given at once: beyond them a CPU's caches gain nothing
AT_ONCE, AT_ONCE_ON_CPU = 2**23, 2**19
DIGITS = 128  # base of the numbers that follow a merger's rows; bfloat16 holds them exactly


@contextmanager
def encode_once(model: Any, family: Family, cache: FeatureCache | None) -> Iterator[None]:
    """The model's encoders see each distinct medium once, as long as this is open; None: nothing is changed."""
    swapped: list[tuple[nn.Module, str, _Once]] = []
    if cache is not None:
        for parent, name in _towers(bare(model), family):
            tower = parent._modules[name]
            if isinstance(tower, nn.Module) and not isinstance(tower, _Once):
                swapped.append((parent, name, _Once(tower, cache)))
                parent._modules[name] = swapped[-1][-1]
    try:
        yield
    finally:
        for parent, name, once in swapped:
            parent._modules[name] = once.tower
            once.close()


def _towers(model: nn.Module, family: Family) -> Iterator[tuple[nn.Module, str]]:
    """Where the encoders stand: (parent, name in it)."""
    there = dict(model.named_modules())
    for prefix in (*family.parts["vision"], *family.parts["audio"]):
        if prefix not in there:
            continue
        module = there[prefix]
        if isinstance(module, nn.ModuleList):
            yield from ((module, name) for name in module._modules)
        else:
            parent, _, name = prefix.rpartition(".")
            yield there[parent], name


def _mergers(tower: nn.Module) -> list[nn.Module]:
    """A Qwen-VL tower's own projectors: the last one, then those of its deeper layers in their order."""
    merger, deep = getattr(tower, "merger", None), getattr(tower, "deepstack_merger_list", None)
    return ([] if merger is None else [merger]) + ([] if deep is None else list(deep))


@dataclass(frozen=True)
class _Call:
    """One call of a tower, by medium: `parts[i]` are the tensors that are medium i's own ("": given without a name)."""

    parts: list[dict[str, torch.Tensor]]
    rest: dict[str, Any]  # the same for all media
    patches: list[int] | None  # rows of each medium where a tower takes patches; None: one row each

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
        tensors = {n: torch.cat([self.parts[i][n] for i in chosen]) for n in self.parts[0]}
        first = [tensors.pop("")] if "" in tensors else []
        return tower(*first, **tensors, **self.rest)


class _Once(nn.Module):
    """Stands in for a tower: the same parameters under the same names, and the same attributes."""

    tower: nn.Module

    def __init__(self, tower: nn.Module, cache: FeatureCache) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = tower._parameters, tower._buffers, tower._modules
        self.training = tower.training
        self.__dict__.update(tower=tower, cache=cache, mergers=_mergers(tower), live=set[str]())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["tower"], name)

    def train(self, mode: bool = True) -> _Once:
        self.tower.train(mode)
        self.training = mode
        return self

    def close(self) -> None:
        """Forget what a tower that learns has made: a run that is resumed here has nothing of it either."""
        for owner in self.live:
            self.cache.forget(owner)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = _taken_apart(self.tower, args, kwargs)
        if call is None:
            return self.tower(*args, **kwargs)
        device = next(iter(call.parts[0].values())).device.type
        how = f"{torch.is_autocast_enabled(device)} {torch.get_autocast_dtype(device)}"
        names = [digest(part.values(), f"{device} {how} {sorted(call.rest.items())}") for part in call.parts]
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        learns = any(t.requires_grad for t in own_tensors(self.tower, self.mergers).values())
        if learns:
            made = self._learning(call, first)
        else:
            made = self._frozen(call, first)
        return _put_together([made[name] for name in names])

    def _learning(self, call: _Call, first: dict[str, int]) -> dict[str, Made]:
        """The distinct media of this call at once; without gradients, those that are not known yet."""
        owner = f"learning {id(self.tower)} {versions(own_tensors(self.tower))} {self.training}"
        keep = not torch.is_grad_enabled()
        made = {n: m for n in first if keep and (m := self.cache.get((owner, n))) is not None}
        missing = [name for name in first if name not in made]
        if missing:
            chosen = [first[name] for name in missing]
            made |= zip(missing, self._encoded(call, chosen), strict=True)
        if keep:
            self.live.add(owner)
            for name in missing:
                self.cache.put((owner, name), made[name])
        return made

    def _frozen(self, call: _Call, first: dict[str, int]) -> dict[str, Made]:
        """The distinct media of this call; its projectors run anew where they learn, or where only they differ."""
        if any(p.requires_grad for merger in self.mergers for p in merger.parameters()):
            return self._merged(self._kept(call, first, self._below_owner(), self._below))
        whole = self.cache.owner(self.tower)
        below = self._below_owner() if self.mergers else None
        made: dict[str, Made] = {}
        states: dict[str, Made] = {}
        for name in first:
            if (known := self.cache.get((whole, name))) is not None:
                made[name] = known
            elif below is not None and (known := self.cache.get((below, name))) is not None:
                states[name] = known
        missing = {name: i for name, i in first.items() if name not in made and name not in states}
        made |= self._kept(call, missing, whole, self._encoded)
        return made | self._merged(states)

    def _below_owner(self) -> str:
        return self.cache.owner(self.tower, self.mergers) + " below"

    def _kept(
        self,
        call: _Call,
        first: dict[str, int],
        owner: str,
        make: Callable[[_Call, Sequence[int]], list[Made]],
    ) -> dict[str, Made]:
        """What `make` makes of each medium: out of the cache, or made now, without gradients, and put there."""
        made = {name: known for name in first if (known := self.cache.get((owner, name))) is not None}
        names = {i: name for name, i in first.items() if name not in made}
        for batch in call.in_batches(list(names)):
            with torch.no_grad():
                results = make(call, batch)
            for i, result in zip(batch, results, strict=True):
                made[names[i]] = result.by_itself()
                self.cache.put((owner, names[i]), made[names[i]])
        return made

    def _encoded(self, call: _Call, chosen: Sequence[int]) -> list[Made]:
        """What the tower makes of some media of a call, each apart."""
        out = call.of(self.tower, chosen)
        if call.patches is None:
            states = out.last_hidden_state
            return [Made(type(out), {"last_hidden_state": [states[i : i + 1]]}) for i in range(len(chosen))]
        sizes = [call.patches[i] for i in chosen]
        fields: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        for field in ("pooler_output", "deepstack_features"):
            value = getattr(out, field, None)
            if value is not None:
                each = [value] if isinstance(value, torch.Tensor) else value
                fields[field] = [x.split([n * len(x) // sum(sizes) for n in sizes]) for x in each]
        return [
            Made(type(out), {f: [parts[i] for parts in each] for f, each in fields.items()})
            for i in range(len(chosen))
        ]

    def _below(self, call: _Call, chosen: Sequence[int]) -> list[Made]:
        """What the projectors inside the tower are given of some media, [rows, patches of a row x D] each.

        Rows stand in the order in which the tower gives features out (Qwen2.5-VL's windows are undone): while the
        tower runs, each projector's rows are replaced by their own numbers, which come out where the features would.
        """
        given: list[torch.Tensor] = []

        def number_rows(
            merger: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor
        ) -> torch.Tensor:
            given.append(inputs[0].reshape(len(out), -1, inputs[0].shape[-1]))
            marks = torch.zeros_like(out)
            for digit in range(3):
                marks[:, digit] = (torch.arange(len(out), device=out.device) // DIGITS**digit) % DIGITS
            return marks

        # deeper layers' projectors run before the last one
        hooks = [merger.register_forward_hook(number_rows) for merger in self.mergers]
        try:
            numbered = self._encoded(call, chosen)
        finally:
            for hook in hooks:
                hook.remove()
        places = torch.tensor([1, DIGITS, DIGITS**2], device=given[0].device)
        made = []
        for medium in numbered:
            marked = [*medium.fields.get("deepstack_features", []), *medium.fields["pooler_output"]]
            ordered = [
                x[(marks[:, :3].long() * places).sum(-1)] for x, marks in zip(given, marked, strict=True)
            ]
            made.append(
                Made(medium.kind, {"pooler_output": ordered[-1:], "deepstack_features": ordered[:-1]})
            )
        return made

    def _merged(self, states: dict[str, Made]) -> dict[str, Made]:
        """The features of media, by the projectors as they are now."""
        if not states:
            return {}
        last, *deep = self.mergers
        below = list(states.values())
        sizes = [len(one.fields["pooler_output"][0]) for one in below]

        def run(merger: nn.Module, field: str, place: int) -> tuple[torch.Tensor, ...]:
            together = torch.cat([one.fields[field][place] for one in below])
            return merger(together.flatten(0, 1)).split(sizes)

        lasts = run(last, "pooler_output", 0)
        deeper = [run(merger, "deepstack_features", k) for k, merger in enumerate(deep)]
        made = {}
        for i, (name, one) in enumerate(states.items()):
            fields = {"pooler_output": [lasts[i]]}
            if deep:
                fields["deepstack_features"] = [parts[i] for parts in deeper]
            made[name] = Made(one.kind, fields)
        return made


def _taken_apart(tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
    """A call by medium; None, and the reason in the log, where that cannot be told or would not be the same."""
    grid = kwargs.get("grid_thw", args[1] if len(args) == 2 else None)
    main: Any = args[0] if args else next((x for x in kwargs.values() if isinstance(x, torch.Tensor)), None)
    rest = {n: x for n, x in kwargs.items() if not isinstance(x, torch.Tensor)}
    tensors = {n: x for n, x in kwargs.items() if isinstance(x, torch.Tensor) and x is not grid}
    tensors = ({"": main} if args else {}) | tensors
    reason = _noise(tower)
    if main is None or not len(main) or len(args) > (1 if grid is None else 2):
        reason = "its media cannot be told apart"
    elif grid is None and (main.ndim < 3 or any(len(x) != len(main) for x in tensors.values())):
        reason = "its media cannot be told apart"
    elif grid is not None and (len(tensors) > 1 or int(grid.prod(-1).sum()) != len(main)):
        reason = "it is called with more than patches and their grids"
    if any(rest.get(name) for name in ("output_hidden_states", "output_attentions")):
        reason = "more than its last states is asked for"
    if reason is not None:
        if (said := f"{type(tower).__name__} encodes media for every row that asks: {reason}") not in _said:
            _said.add(said)
            log.warning("%s", said)
        return None
    if grid is None:
        parts = [{n: x[i : i + 1] for n, x in tensors.items()} for i in range(len(main))]
        return _Call(parts, rest, None)
    sizes = grid.prod(-1).tolist()
    (name,) = tensors
    pieces = zip(main.split(sizes), grid.split(1), strict=True)
    return _Call([{name: x, "grid_thw": g} for x, g in pieces], rest, sizes)


def _noise(tower: nn.Module) -> str | None:
    """Dropout makes other features every time; an adapter's is in its modules, not in the tower's config."""
    found = drops(tower, now=True)
    return None if found is None else f"its training draws anew ({found[0]} is {found[1]})"


def _put_together(made: Sequence[Made]) -> Any:
    """The tower's output for media in their order."""
    fields: dict[str, Any] = {}
    for name, parts in made[0].fields.items():
        rows = [torch.cat([m.fields[name][i] for m in made]) for i in range(len(parts))]
        fields[name] = rows[0] if name != "deepstack_features" else rows
    return made[0].kind(**fields)
