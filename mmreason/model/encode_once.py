"""Each distinct medium passes its encoder once, however many rows, passes and steps ask for it.

While `encode_once` is open, every tower of the model is stood in for by a module that knows which media it has seen.
A frozen tower's features are kept by content, across steps and epochs, for the policy and its reference alike; those of
a call that are not known yet are encoded side by side, some at a time. A tower that learns encodes the distinct media
of each forward pass, and without gradients (rollouts, old log-probabilities) keeps them until its weights change. A
projector inside a tower (Qwen-VL's mergers) that learns above frozen layers runs in every pass, on what those layers
made.

In the last bit features depend on how many media stand side by side (measured: up to 2e-6), and that on what is known.
So what is known begins anew (`begin_anew`) wherever a run may be resumed.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmreason.model.family import Family, bare
from mmreason.model.feature_cache import FeatureCache, Made, digest, own_tensors, versions
from mmreason.model.shared_fit import drops
from mmreason.model.tower_call import TowerCall, taken_apart

log = logging.getLogger(__name__)
_said: set[str] = set()
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


def begin_anew(cache: FeatureCache | None) -> None:
    """Forget all features: from here on a run does to the bit what one does that is resumed here."""
    if cache is not None:
        cache.clear()


@contextmanager
def encoded_apart(model: Any) -> Iterator[None]:
    """What is encoded while this is open, inside `encode_once`, is not known to it, nor known from it."""
    towers = [m for m in bare(model).modules() if isinstance(m, _Once)]
    caches = [tower.cache for tower in towers]
    fresh = FeatureCache(max((cache.max_bytes for cache in caches), default=0))
    for tower in towers:
        tower.__dict__["cache"] = fresh
    try:
        yield
    finally:
        for tower, cache in zip(towers, caches, strict=True):
            tower.__dict__["cache"] = cache


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
    """A tower's own projectors: the last one, then those of its deeper layers in their order.

    Qwen-VL's eyes call theirs mergers; Qwen2.5-Omni's ears, which are told how long sounds are, have one as well.
    """
    hears = "feature_lens" in inspect.signature(tower.forward).parameters
    last = getattr(tower, "proj" if hears else "merger", None)
    deep = getattr(tower, "deepstack_merger_list", None)
    return ([] if last is None else [last]) + ([] if deep is None else list(deep))


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
        call = _noise(self.tower) or taken_apart(self.tower, args, kwargs)
        if isinstance(call, str):
            if (
                said := f"{type(self.tower).__name__} encodes media for every row that asks: {call}"
            ) not in _said:
                _said.add(said)
                log.warning("%s", said)
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

    def _learning(self, call: TowerCall, first: dict[str, int]) -> dict[str, Made]:
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

    def _frozen(self, call: TowerCall, first: dict[str, int]) -> dict[str, Made]:
        """The distinct media of this call; its projectors run anew where they learn, or where only they differ."""
        if any(p.requires_grad for merger in self.mergers for p in merger.parameters()):
            return self._merged(call, self._kept(call, first, self._below_owner(), self._below))
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
        return made | self._merged(call, states)

    def _below_owner(self) -> str:
        return self.cache.owner(self.tower, self.mergers) + " below"

    def _kept(
        self,
        call: TowerCall,
        first: dict[str, int],
        owner: str,
        make: Callable[[TowerCall, Sequence[int]], list[Made]],
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

    def _encoded(self, call: TowerCall, chosen: Sequence[int]) -> list[Made]:
        """What the tower makes of some media of a call, each apart."""
        out = call.of(self.tower, chosen)
        rows = [1] * len(chosen) if call.rows is None else [call.rows[i] for i in chosen]
        fields: dict[str, list[tuple[torch.Tensor, ...]]] = {}
        for field in call.fields:
            value = getattr(out, field, None)
            if value is not None:
                each = [value] if isinstance(value, torch.Tensor) else value
                fields[field] = [x.split([n * len(x) // sum(rows) for n in rows]) for x in each]
        return [
            Made(type(out), {f: [parts[i] for parts in each] for f, each in fields.items()})
            for i in range(len(chosen))
        ]

    def _below(self, call: TowerCall, chosen: Sequence[int]) -> list[Made]:
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

    def _merged(self, call: TowerCall, states: dict[str, Made]) -> dict[str, Made]:
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
            fields = {field: [lasts[i]] for field in call.fields if field != "deepstack_features"}
            if deep:
                fields["deepstack_features"] = [parts[i] for parts in deeper]
            made[name] = Made(one.kind, fields)
        return made


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
