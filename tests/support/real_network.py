"""The real network: `ZmqTransport`s, with a chaos proxy before each peer."""

import time
from collections import Counter
from collections.abc import Callable

import zmq

from asyn2f.protocol.channels import (
    UPDATES,
    Arrival,
    Channel,
    Frames,
    Subscribed,
    Unsubscribed,
)
from asyn2f.transport.zmq import ZmqTransport
from tests.support.chaos import ChaosProxy
from tests.support.networks import End
from tests.support.patience import PATIENCE_S

PAYLOAD_BYTES = 1 << 18  # the buffers between hold some tens of these
_ENDED, _BEGUN = zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED


class RealNetwork:
    """Sockets on this machine; implements `Network`."""

    def __init__(self) -> None:
        self._transports: dict[End, ZmqTransport] = {}
        self._ports: tuple[int, int, int] | None = None
        self._monitors: dict[tuple[End, Channel], zmq.Socket] = {}
        self._seen: Counter[tuple[End, Channel, int]] = Counter()
        self._proxies: dict[End, ChaosProxy] = {}
        self._refused: set[End] = set()
        self.start_server()

    def start_server(self) -> None:
        address = "tcp://127.0.0.1:0"
        bound = ZmqTransport.bind(address, PAYLOAD_BYTES, workers=1, ports=self._ports)
        self.server, self._ports = End(), bound.ports()
        self._transports[self.server] = bound
        self._watch(self.server)

    def kill_server(self) -> None:
        ends = self._noticing(*self._proxies)
        self._close(self.server)
        self.until("all peers have noticed", ends)

    def peer(self) -> End:
        assert self._ports is not None
        peer, number = End(), len(self._proxies)
        proxy = ChaosProxy(f"127.0.0.{number + 2}", self._ports, seed=number)
        self._proxies[peer] = proxy
        connected = ZmqTransport.connect_to(proxy.address, PAYLOAD_BYTES, depth=2)
        self._transports[peer] = connected
        self._watch(peer)
        return peer

    def subscribe(self, peer: End, *topics: bytes) -> None:
        assert self._ports is not None
        self._transports[peer].connect(list(topics), *self._ports[1:])
        self._watch(peer)

    def send(self, peer: End, number: int) -> bool:
        return self._transports[peer].send(b"", b"%d" % number)

    def answer(self, route: bytes, number: int) -> bool:
        return self._transports[self.server].send(route, b"%d" % number)

    def publish(self, topic: bytes, number: int) -> bool:
        server, payload = self._transports[self.server], bytes(PAYLOAD_BYTES)
        return server.publish(topic, b"%d" % number, payload)

    def push(self, peer: End, number: int) -> bool:
        payload = bytes(PAYLOAD_BYTES)
        return self._transports[peer].publish(UPDATES, b"%d" % number, payload)

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not in {PATIENCE_S} s: {what}"
            for end, transport in self._transports.items():
                if not end.is_busy:
                    for item in transport.poll(0.002):
                        _take(end, item)

    def connect_all(self, peer: End) -> None:
        self.until(
            "all three are connected",
            lambda: all(self._times(peer, channel, _BEGUN) for channel in Channel),
        )

    def pause(self, end: End) -> None:
        end.is_busy = True

    def resume(self, end: End) -> None:
        end.is_busy = False

    def stall(self, peer: End) -> None:
        self._proxies[peer].set(stalled=True)

    def partition(self, peer: End) -> None:
        ends = self._noticing(peer, self.server)
        self.stall(peer)
        self.until("both have timed out", ends)

    def half_open(self, peer: End) -> None:
        ends = self._noticing(self.server)
        for link in self._proxies[peer].each():
            link.half_open()
        self.until("the server has noticed", ends)

    def refuse(self, peer: End) -> None:
        ends = self._noticing(peer, self.server)
        self._refused.add(peer)
        for link in self._proxies[peer].each():
            link.refuse(True)
        self.until("both have noticed", ends)

    def heal(self, peer: End) -> None:
        self._proxies[peer].set(stalled=False)
        if peer in self._refused:
            self._refused.remove(peer)
            for link in self._proxies[peer].each():
                link.refuse(False)

    def cut(self, peer: End) -> None:
        ends = self._noticing(peer, self.server)
        for link in self._proxies[peer].each():
            link.cut()
        self.until("both have noticed", ends)

    def push_and_cut(self, peer: End, number: int) -> bool:
        link = self._proxies[peer].update
        ends = self._noticing(peer, self.server, channels=(Channel.UPDATE,))
        link.set(limit_bytes=PAYLOAD_BYTES // 2)
        accepted = self.push(peer, number)
        self.until("half of it has passed", link.limit_reached.is_set)
        self.until("both have noticed", ends)
        return accepted

    def wait_for_arrival(self) -> None:
        poller = self._transports[self.server]._poller
        self.until("something has come", lambda: bool(poller.poll(2)))

    def close(self) -> None:
        for end in list(self._transports):
            self._close(end)
        for proxy in self._proxies.values():
            proxy.close()

    def _close(self, end: End) -> None:
        transport = self._transports.pop(end)
        for opened, channel in transport._channels.items():
            opened.disable_monitor()  # an event of the monitor, which is closed later
            self._monitors.pop((end, channel)).close(linger=0)
        transport.close()

    # ------------------------------------------------------------- what sockets notice

    def _watch(self, end: End) -> None:
        """Counts the connections of the sockets from now on."""
        transport = self._transports[end]
        for opened, channel in transport._channels.items():
            if (end, channel) not in self._monitors:
                # A socket has one monitor; without keys the peer does not need its own.
                if channel is Channel.CONTROL and transport._refusals is not None:
                    transport._poller.unregister(transport._refusals.socket)
                    transport._refusals.close()
                    transport._refusals = None
                address = f"inproc://watched-{len(self._monitors)}"
                opened.monitor(address, _ENDED | _BEGUN)
                monitor = transport._context.socket(zmq.PAIR)
                monitor.connect(address)
                self._monitors[end, channel] = monitor

    def _times(self, end: End, channel: Channel, event: int) -> int:
        """The number of such events at a socket."""
        monitor = self._monitors[end, channel]
        while monitor.poll(0):
            number = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            self._seen[end, channel, number] += 1
        return self._seen[end, channel, event]

    def _noticing(
        self, *ends: End, channels: tuple[Channel, ...] = tuple(Channel)
    ) -> Callable[[], bool]:
        """A condition: since this call, all ends have seen a connection end on each."""
        places = [(end, channel, _ENDED) for end in ends for channel in channels]
        before = {place: self._times(*place) for place in places}
        return lambda: all(self._times(*place) > before[place] for place in places)


def _take(end: End, item: Arrival) -> None:
    match item:
        case Subscribed(topic):
            end.subscribed.append(topic)
        case Unsubscribed():
            pass
        case Frames(channel, sender, header):
            end.record(channel, int(bytes(header)), sender)
        case _:
            raise AssertionError(f"unexpected: {item}")
