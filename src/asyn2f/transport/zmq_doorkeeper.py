"""How many connections a server's sockets take, and from where.

Whoever connects takes a descriptor until its handshake has failed. libzmq accepts as
many as there are; the process would then have none left to open a file with. So what is
too many is ended as soon as it has been accepted.
"""

import contextlib
import logging
import resource
import socket
from collections import Counter

import zmq
from zmq.utils.monitor import parse_monitor_message

_RESERVE = 64  # descriptors that connections leave to others
_EACH_PEER = 6  # its three connections, and those before that are not yet given up
_ANYBODY = 64  # connections from an address that are nobody's in particular
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


def most_of(peers: int) -> int:
    """How many connections one address may have where there are so many peers: all of
    them may be behind one."""
    return _EACH_PEER * peers + _ANYBODY


class Doorkeeper:
    """Counts connections by address, and ends those beyond what is allowed.

    Attributes:
      turned_away: how many that were.
    """

    def __init__(self, most_from_one: int) -> None:
        self._most_from_one = most_from_one
        self._bound: dict[zmq.Socket, zmq.Socket] = {}  # by what monitors it
        self._open: dict[tuple[zmq.Socket, int], str] = {}  # addresses
        self._from: Counter[str] = Counter()
        self.turned_away = 0

    def watch(self, bound: zmq.Socket, context: zmq.Context) -> zmq.Socket:
        """A socket to be polled for what goes on at a socket that is bound later; see
        `attend`."""
        endpoint = f"inproc://doorkeeper-{bound.FD}"
        bound.monitor(endpoint, _EVENTS)
        monitor: zmq.Socket = context.socket(zmq.PAIR)
        monitor.set(zmq.RCVHWM, 0)  # a full one would hold up libzmq's own thread
        monitor.connect(endpoint)
        self._bound[monitor] = bound
        return monitor

    def has(self, monitor: object) -> bool:
        """Whether that is one of its sockets."""
        return monitor in self._bound

    def attend(self, monitor: zmq.Socket) -> None:
        """Reads the monitor's events: connections accepted and closed."""
        with contextlib.suppress(zmq.Again):
            while True:
                said = parse_monitor_message(monitor.recv_multipart(zmq.DONTWAIT))
                place = monitor, said["value"]
                # A descriptor that comes again has gone before, whatever was said.
                self._from -= Counter([self._open.pop(place, "")])
                if said["event"] == zmq.EVENT_ACCEPTED:
                    self._let_in(*place)

    def forget(self, bound: zmq.Socket) -> zmq.Socket | None:
        """Watches that socket no longer; what did is to be closed."""
        found = [m for m, watched in self._bound.items() if watched is bound]
        for monitor in found:
            del self._bound[monitor]
            for place in [x for x in self._open if x[0] is monitor]:
                self._from -= Counter([self._open.pop(place)])
            bound.disable_monitor()
        return next(iter(found), None)

    def _let_in(self, monitor: zmq.Socket, descriptor: int) -> None:
        try:
            # Not a copy: there may be no descriptor left for one.
            connection = socket.socket(fileno=descriptor)
        except OSError:
            return  # it has gone already
        try:
            address = str(connection.getpeername()[0]).removeprefix("::ffff:")
            is_ours = connection.getsockname()[1] == _port_of(self._bound[monitor])
            if not is_ours:  # the descriptor is another's by now
                return
            is_last = descriptor >= _most_descriptors()
            if is_last or self._from[address] >= self._most_from_one:
                connection.shutdown(socket.SHUT_RDWR)
                self._tell(address, is_last)
            else:
                self._open[monitor, descriptor] = address
                self._from[address] += 1
        except OSError:
            pass  # as above
        finally:
            connection.detach()

    def _tell(self, address: str, is_last: bool) -> None:
        self.turned_away += 1
        if self.turned_away & (self.turned_away - 1) == 0:  # 1, 2, 4, 8, ...
            why = f"more than {self._most_from_one} from one address"
            if is_last:
                why = f"all but {_RESERVE} descriptors are in use: raise ulimit -n"
            logging.warning(
                "turned away %d connections so far, the last from %s: %s",
                self.turned_away,
                address,
                why,
            )


def _most_descriptors() -> int:
    """The first descriptor that no connection may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 2**31
    return max(limit - _RESERVE, limit // 2)


def _port_of(bound: zmq.Socket) -> int:
    return int(bound.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
