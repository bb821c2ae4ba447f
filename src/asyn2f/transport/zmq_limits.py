"""Limits of ZeroMQ sockets: their options, and connections per address.

A connection takes a descriptor until its handshake has failed, and libzmq accepts as
many as there are; the process would then have none left to open a file with. So a
connection beyond the limits is closed as soon as it has been accepted.
"""

import contextlib
import logging
import resource
import socket
from collections import Counter

import zmq
from zmq.utils.monitor import parse_monitor_message

from asyn2f.protocol.channels import Channel
from asyn2f.protocol.wire_format import MAX_HEADER_BYTES

_MIN_LIBZMQ = (4, 3, 5)  # earlier ones have holes that a peer's bytes can exploit
# Heartbeats notice a host that vanished. High-water marks count messages, so they are
# small where messages are models; see BUILD_NOTES.
_COMMON: dict[int, int | bytes] = {
    zmq.LINGER: 0,
    zmq.IPV6: 1,
    zmq.BACKLOG: 1024,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.RECONNECT_IVL: 200,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.HANDSHAKE_IVL: 5000,  # a silent connection takes a descriptor
}
_ENVELOPE_BYTES = 64  # encryption adds 33 to a frame
_SUBSCRIPTION_BYTES = 1024  # a topic; and no handshake is longer

_RESERVE = 64  # descriptors that are left to files
_EACH_PEER = 6  # its three connections, and previous ones that are not yet closed
_ANYBODY = 64  # further connections from an address
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


def check_library(version: tuple[int, int, int]) -> None:
    """Raises ImportError unless this version of libzmq is supported."""
    if version < _MIN_LIBZMQ:
        raise ImportError(
            f"found libzmq {'.'.join(map(str, version))}, needed: "
            f"{'.'.join(map(str, _MIN_LIBZMQ))} or newer; install a newer pyzmq"
        )


check_library(zmq.zmq_version_info())


def socket_options(
    channel: Channel, kind: int, payload_bytes: int, depth: int
) -> dict[int, int | bytes]:
    """All options of a socket but its keys.

    Args:
      channel: the channel it serves.
      kind: ROUTER, DEALER, XPUB or SUB.
      payload_bytes: the size of a model or an update.
      depth: the number of them that may be queued for reading.
    """
    # libzmq allocates no more than this for an incoming frame.
    longest = max(payload_bytes, MAX_HEADER_BYTES)
    own: dict[int, int | bytes] = {}
    if channel is Channel.CONTROL:
        longest = MAX_HEADER_BYTES
        own = {zmq.SNDHWM: 256, zmq.RCVHWM: 256}
        if kind == zmq.ROUTER:
            own[zmq.ROUTER_MANDATORY] = 1
    elif kind == zmq.SUB:
        own = {zmq.RCVHWM: max(1 if channel is Channel.MODEL else 4, depth)}
    else:
        longest = _SUBSCRIPTION_BYTES
        own = {zmq.SNDHWM: 2 if channel is Channel.MODEL else 4, zmq.XPUB_VERBOSE: 1}
        if channel is Channel.UPDATE:
            own[zmq.XPUB_NODROP] = 1  # a full queue is reported, not hidden
    return _COMMON | own | {zmq.MAXMSGSIZE: longest + _ENVELOPE_BYTES}


def max_connections(peers: int) -> int:
    """The connections allowed from one address, which may be that of all peers."""
    return _EACH_PEER * peers + _ANYBODY


class ConnectionLimiter:
    """Counts a server's connections by address, and closes those beyond the limits.

    Attributes:
      closed: the number of connections closed so far.
    """

    def __init__(self, max_per_address: int) -> None:
        self._max_per_address = max_per_address
        self._bound: dict[zmq.Socket, zmq.Socket] = {}  # by monitor
        self._open: dict[tuple[zmq.Socket, int], str] = {}  # addresses
        self._from: Counter[str] = Counter()
        self.closed = 0

    def watch(self, bound: zmq.Socket, context: zmq.Context) -> zmq.Socket:
        """A monitor of a socket that is bound later: to be polled; see `read`."""
        endpoint = f"inproc://connections-{bound.FD}"
        bound.monitor(endpoint, _EVENTS)
        monitor: zmq.Socket = context.socket(zmq.PAIR)
        monitor.set(zmq.RCVHWM, 0)  # a full queue would block libzmq's own thread
        monitor.connect(endpoint)
        self._bound[monitor] = bound
        return monitor

    def has(self, monitor: object) -> bool:
        """Whether this is one of its monitors."""
        return monitor in self._bound

    def read(self, monitor: zmq.Socket) -> None:
        """Handles the monitor's events: connections accepted and closed."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(monitor.recv_multipart(zmq.DONTWAIT))
                place = monitor, event["value"]
                # A descriptor that is reused has been closed, reported or not.
                self._from -= Counter([self._open.pop(place, "")])
                if event["event"] == zmq.EVENT_ACCEPTED:
                    self._admit(*place)

    def forget(self, bound: zmq.Socket) -> zmq.Socket | None:
        """Stops watching a socket; returns its monitor, which is to be closed."""
        found = [m for m, watched in self._bound.items() if watched is bound]
        for monitor in found:
            del self._bound[monitor]
            for place in [x for x in self._open if x[0] is monitor]:
                self._from -= Counter([self._open.pop(place)])
            bound.disable_monitor()
        return next(iter(found), None)

    def _admit(self, monitor: zmq.Socket, descriptor: int) -> None:
        try:
            # Not a duplicate: there may be no descriptor left for one.
            connection = socket.socket(fileno=descriptor)
        except OSError:
            return  # it has been closed
        try:
            address = str(connection.getpeername()[0]).removeprefix("::ffff:")
            is_ours = connection.getsockname()[1] == _port_of(self._bound[monitor])
            if not is_ours:  # the descriptor has been reused
                return
            is_last = descriptor >= _first_reserved()
            if is_last or self._from[address] >= self._max_per_address:
                connection.shutdown(socket.SHUT_RDWR)
                self._warn(address, is_last)
            else:
                self._open[monitor, descriptor] = address
                self._from[address] += 1
        except OSError:
            pass  # as above
        finally:
            connection.detach()

    def _warn(self, address: str, is_last: bool) -> None:
        self.closed += 1
        if self.closed & (self.closed - 1) == 0:  # 1, 2, 4, 8, ...
            why = f"more than {self._max_per_address} from one address"
            if is_last:
                why = f"all but {_RESERVE} descriptors are in use: raise ulimit -n"
            logging.warning(
                "closed %d connections so far, the last from %s: %s",
                self.closed,
                address,
                why,
            )


def _first_reserved() -> int:
    """The first descriptor that no connection may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 2**31
    return max(limit - _RESERVE, limit // 2)


def _port_of(bound: zmq.Socket) -> int:
    return int(bound.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
