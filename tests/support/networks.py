"""The interface of a network under test: the real one, or that of the simulation.

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
    """A server or a peer, and the messages that it has received, in order."""

    said: list[int] = field(default_factory=list)  # on CONTROL
    models: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    hears: list[bytes] = field(default_factory=list)  # topics that somebody hears now
    routes: dict[int, bytes] = field(default_factory=dict)  # where a number came from
    is_busy: bool = False  # attends to none of its sockets

    def hear(self, channel: Channel, number: int, route: bytes) -> None:
        """Records a message."""
        heard = {"control": self.said, "model": self.models, "update": self.updates}
        heard[channel.value].append(number)
        if channel is Channel.CONTROL:
            self.routes[number] = route


class Network(Protocol):
    """A server, its peers and their connections. Methods that send return False if the
    transport refuses a message."""

    server: End

    def peer(self) -> End:
        """Adds a peer, connected on CONTROL only."""

    def subscribe(self, peer: End, *topics: bytes) -> None:
        """Connects its channels MODEL and UPDATE."""

    def say(self, peer: End, number: int) -> bool:
        """Sends from a peer on CONTROL."""

    def answer(self, route: bytes, number: int) -> bool:
        """Sends from the server on CONTROL."""

    def publish(self, topic: bytes, number: int) -> bool:
        """Publishes a model."""

    def push(self, peer: End, number: int) -> bool:
        """Publishes an update."""

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; fails at the timeout."""

    def reach_out(self, peer: End) -> None:
        """Waits until its connections are as complete as they can be while the server
        does not poll."""

    def stand_still(self, end: End) -> None:
        """Stops polling the sockets of an end."""

    def go_on(self, end: End) -> None:
        """Resumes polling."""

    def stall(self, peer: End) -> None:
        """Stalls its connections for less than the transport's heartbeat timeout."""

    def part(self, peer: End) -> None:
        """Stalls its connections until both sides have given them up."""

    def half_open(self, peer: End) -> None:
        """Closes the server's side of its connections only."""

    def refuse(self, peer: End) -> None:
        """Closes its connections, and refuses new ones."""

    def heal(self, peer: End) -> None:
        """Ends all faults of its connections."""

    def cut(self, peer: End) -> None:
        """Closes its connections; new ones are possible at once."""

    def push_and_cut(self, peer: End, number: int) -> bool:
        """Pushes, and closes the connection in the middle of the message."""

    def kill_server(self) -> None:
        """Kills the server; its peers notice."""

    def start_server(self) -> None:
        """Starts another server, which becomes `server`."""

    def rest_at_server(self) -> None:
        """Waits until a message is queued at the server, which does not poll."""

    def close(self) -> None:
        """Closes everything."""
