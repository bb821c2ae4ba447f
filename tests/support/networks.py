"""The operations of a test script on a network, real or simulated.

A script is written once and runs over both; messages are numbers, and each `End`
records those it has received. So the scripts verify the simulated network of
`tests.simulation` against the sockets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from asyn2f.protocol.channels import Channel


@dataclass(eq=False)
class End:
    """A server or a peer, and what it has received so far, in order."""

    control: list[int] = field(default_factory=list)  # on CONTROL
    models: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    subscribed: list[bytes] = field(default_factory=list)  # topics
    routes: dict[int, bytes] = field(default_factory=dict)  # the sender of a number
    is_busy: bool = False  # polls none of its sockets

    def record(self, channel: Channel, number: int, route: bytes) -> None:
        """Records a message."""
        heard = {"control": self.control, "model": self.models, "update": self.updates}
        heard[channel.value].append(number)
        if channel is Channel.CONTROL:
            self.routes[number] = route


class Network(Protocol):
    """A server, its peers and the connections between them. Sending returns False if
    the message was refused; True does not mean that it will arrive."""

    server: End

    def peer(self) -> End:
        """A new peer; only its CONTROL is connected."""

    def subscribe(self, peer: End, *topics: bytes) -> None:
        """Connects its channels MODEL and UPDATE."""

    def send(self, peer: End, number: int) -> bool:
        """From a peer, on CONTROL."""

    def answer(self, route: bytes, number: int) -> bool:
        """Sends from the server on CONTROL."""

    def publish(self, topic: bytes, number: int) -> bool:
        """Publishes a model."""

    def push(self, peer: End, number: int) -> bool:
        """Publishes an update."""

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        """Runs until the condition holds; fails if that takes too long."""

    def connect_all(self, peer: End) -> None:
        """Runs until the peer's connections are made as far as they can be while the
        server polls nothing."""

    def pause(self, end: End) -> None:
        """The end is busy, and polls none of its sockets."""

    def resume(self, end: End) -> None:
        """The end polls its sockets again."""

    def stall(self, peer: End) -> None:
        """The connections carry nothing, for less than the heartbeat timeout."""

    def partition(self, peer: End) -> None:
        """The connections carry nothing, until both sides have timed out."""

    def half_open(self, peer: End) -> None:
        """The server's side of the connections ends, and the peer does not notice."""

    def refuse(self, peer: End) -> None:
        """The connections end, as both sides notice, and no new ones can be made."""

    def heal(self, peer: End) -> None:
        """Ends every fault of the connections."""

    def cut(self, peer: End) -> None:
        """The connections end; new ones can be made at once."""

    def push_and_cut(self, peer: End, number: int) -> bool:
        """Pushes; the connection ends when half of the update has passed."""

    def kill_server(self) -> None:
        """The server dies; its peers notice."""

    def start_server(self) -> None:
        """Another server takes its place, and is `server` from now on."""

    def wait_for_arrival(self) -> None:
        """Runs until a message is queued at the busy server."""

    def close(self) -> None:
        """Closes all ends."""
