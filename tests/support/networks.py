"""What a script can do to a network, be it the real one or the simulation's.

A script says of each end what it does, and finds in `End` what it has heard; messages
are numbers. So it is written once, and shows whether the pretended network of
`tests.simulation` is true to the sockets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from asyn2f.protocol.channels import (
    Channel,
)


@dataclass(eq=False)
class End:
    """A server or a peer: what it has heard so far, in this order."""

    said: list[int] = field(default_factory=list)  # on CONTROL
    models: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    hears: list[bytes] = field(default_factory=list)  # topics that somebody hears now
    routes: dict[int, bytes] = field(default_factory=dict)  # where a number came from
    is_busy: bool = False  # attends to none of its sockets

    def hear(self, channel: Channel, number: int, route: bytes) -> None:
        """Notes a message."""
        heard = {"control": self.said, "model": self.models, "update": self.updates}
        heard[channel.value].append(number)
        if channel is Channel.CONTROL:
            self.routes[number] = route


class Network(Protocol):
    """A server, its peers and what is between them. Who sends is told whether it went:
    False means refused, True no more than that nobody said no."""

    server: End

    def peer(self) -> End:
        """Another peer; only its CONTROL is connected."""

    def subscribe(self, peer: End, *topics: bytes) -> None:
        """Connects the other two of its channels."""

    def say(self, peer: End, number: int) -> bool:
        """From a peer, on CONTROL."""

    def answer(self, route: bytes, number: int) -> bool:
        """From the server, on CONTROL."""

    def publish(self, topic: bytes, number: int) -> bool:
        """A model."""

    def push(self, peer: End, number: int) -> bool:
        """An update."""

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Lets happen what happens until then; fails if it takes too long."""

    def reach_out(self, peer: End) -> None:
        """Until its connections have come as far as they can come by themselves, while
        the server attends to nothing."""

    def stand_still(self, end: End) -> None:
        """It is busy, and attends to none of its sockets."""

    def go_on(self, end: End) -> None:
        """And now it does again."""

    def stall(self, peer: End) -> None:
        """Its connections carry nothing, for less than heartbeats are patient."""

    def part(self, peer: End) -> None:
        """Its connections carry nothing, until both sides have given them up."""

    def half_open(self, peer: End) -> None:
        """The server's side of its connections ends, and the peer is not told."""

    def refuse(self, peer: End) -> None:
        """Its connections end, as both sides notice, and none can be made."""

    def heal(self, peer: End) -> None:
        """Whatever was done to its connections is over."""

    def cut(self, peer: End) -> None:
        """Its connections end; new ones can be made at once."""

    def push_and_cut(self, peer: End, number: int) -> bool:
        """Pushes; its connection ends when half of that has passed."""

    def kill_server(self) -> None:
        """It ends at once; its peers notice."""

    def start_server(self) -> None:
        """Another one takes its place, and is `server` from now on."""

    def rest_at_server(self) -> None:
        """Until something waits at the server, which is busy, to be read."""

    def close(self) -> None:
        """Ends everything."""
