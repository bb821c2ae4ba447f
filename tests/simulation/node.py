"""A simulated process: its protocol, its connections and its jobs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from tests.simulation.disk import Kept


@dataclass(eq=False)
class Line:
    """A peer's connection on one channel. `number` grows whenever it breaks: what was
    sent on an earlier one does not arrive."""

    peer: "Node"
    channel: str
    server: "Node | None" = None  # at the other end; None = broken
    number: int = 0
    stalled_s: float = 0.0  # carries nothing until then
    in_flight: int = 0  # from its publisher, not yet taken by its reader
    free_s: list[float] = field(default_factory=lambda: [0.0, 0.0])  # up, down
    topics: set[bytes] = field(default_factory=set)  # subscriptions that have arrived
    wanted: tuple[bytes, ...] = ()
    unsent: list[p.FromWire] = field(default_factory=list)  # kept while it is broken
    swallows: bool = False  # broken, and its peer has not noticed

    @property
    def route(self) -> bytes:
        """The address of a peer on CONTROL, different for each connection."""
        return f"{self.peer.name}/{self.number}".encode()


@dataclass(eq=False)
class Node:
    """A process. `backlog`: what happens to it while it is paused."""

    machine: Any
    name: str  # its session, or "server-<incarnation>"
    clock_s: float  # what its clock shows at time 0
    worker: int = -2
    alive: bool = True
    paused: bool = False
    finish: p.Finish | None = None
    tick_s: float | None = None  # when the next tick is scheduled
    backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = field(
        default_factory=list
    )
    free_s: Counter[str] = field(default_factory=Counter)  # of its threads
    # a peer's
    lines: dict[str, Line] = field(default_factory=dict)
    session: str = ""
    program: Any = None
    parked: int | None = None  # waits for a version other than this
    stopping: bool = False
    hung: bool = False
    base: int = -1
    newest: int = -1
    base_from: int = -1  # the incarnation that gave it out
    newest_from: int = -1
    pushes: int = 0
    step: int = 0
    start: int = -1  # the base with which its cycle began
    # a server's
    incarnation: int = 0
    routes: dict[bytes, Line] = field(default_factory=dict)
    held: dict[UpdateKey, str] = field(default_factory=dict)  # results in its memory
    unsaved: dict[int, Kept] = field(default_factory=dict)

    @property
    def is_up(self) -> bool:
        """Whether it handles events."""
        return self.alive and self.finish is None
