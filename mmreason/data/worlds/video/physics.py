"""What things do in a clip: they stay, appear, vanish, move, turn another colour, flash, and hit one another.

A clip is eight moments of half a second on a 4x4 grid. A moving thing takes one cell a moment until it meets the
wall or another thing. When it hits a thing that rests, it stops and the other moves on in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mmreason.data.worlds.image.scenes import SIDE, cell_name

MOMENTS = 8
SECONDS = 4.0
MOMENT = SECONDS / MOMENTS  # seconds
STEPS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
WAYS = tuple(STEPS)
VERBS = ("moved", "appeared", "vanished", "turned", "flashed", "stayed")


@dataclass(frozen=True)
class Actor:
    """A thing and what it does of itself; moments count from 1, and what happens at one is first seen there.

    Example: `Actor(1, 1, "red", "star", moves=("right", 3))`: still in cell a1 at moment 2, in cell a2 at 3.
    """

    row: int
    column: int
    colour: str
    shape: str
    appears: int = 1
    vanishes: int = MOMENTS + 1
    moves: tuple[str, int] | None = None
    turns: tuple[str, int] | None = None
    flashes: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Colour at first and shape: "red star"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, order=True)
class Event:
    """Something that happened to a thing, or `stayed`, when nothing did.

    Example: `Event(3, 1, "red star", "moved", "left", until=5)`.
    """

    moment: int  # where it is first seen
    rank: int  # which of two at one moment is told first: a hit before the move it makes
    name: str
    verb: str
    what: str = ""  # the way it moved, the colour it turned, the name of what it hit
    until: int = 0  # the last moment of a move
    pushed: bool = False  # moved because it was hit

    @property
    def phrase(self) -> str:
        """The event in words: "red star moved left"."""
        return f"{self.name} {self.verb} {self.what}".rstrip()


@dataclass(frozen=True)
class Look:
    """How a thing is seen at one moment. Example: `Look(2, 3, "red", way="left")`: it came in from the right."""

    row: int
    column: int
    colour: str
    way: str = ""  # the way it came into this cell; empty at rest
    flash: bool = False

    @property
    def cell(self) -> str:
        """The cell's name as the image world writes it: "b3"."""
        return cell_name(self.row, self.column)


Track = tuple[Look | None, ...]  # one for each moment; None: not there


@dataclass(frozen=True)
class Clip:
    """Everything that is seen. `tracks` run beside `actors`; events are in the order they are told."""

    actors: tuple[Actor, ...]
    tracks: tuple[Track, ...]
    events: tuple[Event, ...]

    @cached_property
    def entries(self) -> tuple[Event, ...]:
        """The events, then the things that stayed, in reading order of their cells."""
        busy = {e.name for e in self.events}
        idle = sorted((a for a in self.actors if a.name not in busy), key=lambda a: (a.row, a.column))
        return (*self.events, *(Event(1, 0, a.name, "stayed") for a in idle))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The things, in reading order of the cells they are first seen in."""
        return tuple(a.name for a in sorted(self.actors, key=lambda a: (a.row, a.column)))

    def did(self, verb: str) -> tuple[Event, ...]:
        """The entries of one verb, in order; no thing does the same twice."""
        return tuple(e for e in self.entries if e.verb == verb)

    def track(self, name: str) -> Track:
        """Where one thing is seen at every moment."""
        return next(t for a, t in zip(self.actors, self.tracks, strict=True) if a.name == name)


class Undecided(Exception):
    """Two things would clash in a way that the rules leave open, or something would happen unseen."""


@dataclass
class _State:
    """A thing while time runs."""

    actor: Actor
    row: int
    column: int
    colour: str
    there: bool = False
    way: str = ""
    started: int = 0  # when it began to move; 0: it never did
    pushed: bool = False
    looks: list[Look | None] = field(default_factory=list)

    @property
    def cell(self) -> tuple[int, int]:
        return self.row, self.column

    @property
    def ahead(self) -> tuple[int, int]:
        rows, columns = STEPS[self.way]
        return self.row + rows, self.column + columns


def _inside(cell: tuple[int, int]) -> bool:
    return all(1 <= x <= SIDE for x in cell)


def _start(state: _State, way: str, moment: int, pushed: bool = False) -> None:
    if state.started:
        raise Undecided("a thing would move twice")
    state.way, state.started, state.pushed = way, moment, pushed


def _stop_or_hit(states: Sequence[_State], moment: int) -> list[Event]:
    """Whatever moves stops at a wall, and passes its motion on to what it hits."""
    events = []
    for state in [s for s in states if s.there and s.way]:
        if not _inside(state.ahead):
            state.way = ""
        elif met := next((s for s in states if s.there and s.cell == state.ahead), None):
            if met.way:
                raise Undecided("two moving things would meet")
            _start(met, state.way, moment, pushed=True)
            if not _inside(met.ahead) or any(s.there and s.cell == met.ahead for s in states):
                raise Undecided("a thing that is hit could not move on")
            events.append(Event(moment, 0, state.actor.name, "hit", met.actor.name))
            state.way = ""
        if not state.way and state.started == moment:
            raise Undecided("a thing would stop before it is seen to move")
    return events


def _advance(states: Sequence[_State], moment: int) -> list[Event]:
    """One moment later: things vanish, set off, stop, hit, step, and appear."""
    for state in states:
        if state.actor.vanishes == moment:
            state.there, state.way = False, ""
        elif state.there and state.actor.moves and state.actor.moves[1] == moment:
            _start(state, state.actor.moves[0], moment)
    events = _stop_or_hit(states, moment)
    for state in states:
        if state.there and state.way:
            state.row, state.column = state.ahead
        if state.actor.appears == moment:
            state.there = True
        if state.actor.turns and state.actor.turns[1] == moment:
            state.colour = state.actor.turns[0]
    held = [s.cell for s in states if s.there]
    if len(set(held)) < len(held):
        raise Undecided("two things would be in one cell")
    return events


def _own_events(state: _State) -> list[Event]:
    """What one thing did, from what was seen of it."""
    a = state.actor
    events = [Event(moment, 1, a.name, "flashed") for moment in a.flashes]
    if a.appears > 1:
        events.append(Event(a.appears, 1, a.name, "appeared"))
    if a.vanishes <= MOMENTS:
        events.append(Event(a.vanishes, 1, a.name, "vanished"))
    if a.turns:
        events.append(Event(a.turns[1], 1, a.name, "turned", a.turns[0]))
    moving = [(moment, look.way) for moment, look in enumerate(state.looks, start=1) if look and look.way]
    if moving:
        (first, way), (last, _) = moving[0], moving[-1]
        events.append(Event(first, 1, a.name, "moved", way, last, state.pushed))
    return events


def simulate(actors: Sequence[Actor]) -> Clip:
    """Let the things do what they do.

    Raises Undecided where the rules leave open what happens; such scenes are never shown.
    """
    states = [_State(a, a.row, a.column, a.colour) for a in actors]
    hits: list[Event] = []
    for moment in range(1, MOMENTS + 1):
        hits += _advance(states, moment)
        for s in states:
            flash = moment in s.actor.flashes
            s.looks.append(Look(s.row, s.column, s.colour, s.way, flash) if s.there else None)
    events = hits + [event for s in states for event in _own_events(s)]
    return Clip(tuple(actors), tuple(tuple(s.looks) for s in states), tuple(sorted(events)))


def without(clip: Clip, name: str) -> Clip:
    """The same clip had one thing never been there; raises Undecided as `simulate` does."""
    return simulate([a for a in clip.actors if a.name != name])
