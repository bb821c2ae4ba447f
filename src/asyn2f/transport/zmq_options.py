"""The options of all sockets, in one place."""

import zmq

from asyn2f.protocol.channels import (
    Channel,
)
from asyn2f.protocol.wire_format import (
    MAX_HEADER_BYTES,
)
from asyn2f.transport.keys import PeerKeys, ServerKeys

DOMAIN = b"asyn2f"  # of the keys
_NEEDED = (4, 3, 5)  # earlier ones have holes that a stranger's bytes can open
# Heartbeats notice a host that vanished, high-water marks count messages, so they are
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
    zmq.HANDSHAKE_IVL: 5000,  # who connects and says nothing takes a descriptor
}
_ENVELOPE_BYTES = 64  # what encryption adds to a frame is 33
_SUBSCRIPTION_BYTES = 1024  # a topic; and no handshake is longer


def check_library(version: tuple[int, int, int]) -> None:
    """Nothing, if that libzmq is good enough.

    Raises:
      ImportError: it is not.
    """
    if version < _NEEDED:
        raise ImportError(
            f"found libzmq {'.'.join(map(str, version))}, needed: "
            f"{'.'.join(map(str, _NEEDED))} or newer; install a newer pyzmq"
        )


check_library(zmq.zmq_version_info())


def socket_options(
    channel: Channel, kind: int, payload_bytes: int, depth: int
) -> dict[int, int | bytes]:
    """All options of a socket but its keys; the one place where they are said.

    Args:
      channel: what it is for.
      kind: ROUTER, DEALER, XPUB or SUB.
      payload_bytes: of a model or an update.
      depth: how many of them may wait to be read.
    """
    # No incoming frame is longer, so no more memory is taken for it.
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
            own[zmq.XPUB_NODROP] = 1  # a full queue is said, not hidden
    return _COMMON | own | {zmq.MAXMSGSIZE: longest + _ENVELOPE_BYTES}


def curve_options(keys: ServerKeys | PeerKeys) -> dict[int, int | bytes]:
    """The options of a socket that speaks under these keys, and with nobody else."""
    own: dict[int, int | bytes] = {
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.CURVE_PUBLICKEY: zmq.curve_public(keys.secret),
    }
    if isinstance(keys, PeerKeys):
        return own | {zmq.CURVE_SERVERKEY: keys.server}
    # Without the domain and its enforcement, a socket without a handler lets all in.
    own |= {zmq.ZAP_DOMAIN: DOMAIN, zmq.ZAP_ENFORCE_DOMAIN: 1}
    return own | {zmq.CURVE_SERVER: 1}
