"""Where a server listens: `tcp://host:port`, and who can reach it there."""

import ipaddress
import socket
from urllib.parse import urlsplit

from asyn2f.errors import AddressError


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; port 0 = any free one, host * = all addresses
    of this machine.

    Raises:
      AddressError: not such an address.

    >>> parse_address("tcp://127.0.0.1:5570"), parse_address("tcp://*:0")
    (('127.0.0.1', 5570), ('0.0.0.0', 0))
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"address: found {address!r}: {error}") from None
    if parts.scheme != "tcp" or not host or port is None:
        raise AddressError(
            f"address: found {address!r}, expected tcp://host:port, "
            "for example tcp://127.0.0.1:5570 (port 0 = any free one)"
        )
    return "0.0.0.0" if host == "*" else host, port


def check_host(host: str) -> None:
    """Nothing, unless it is the name of a network interface: a server could listen
    there, and no peer could be told where that is.

    Raises:
      AddressError: it is one.
    """
    if host in {name.lower() for _, name in socket.if_nameindex()}:
        raise AddressError(
            f"address: found {host!r}, which is a network interface; give its IP "
            "address, or * for all of this machine"
        )


def reachable(host: str) -> str:
    """Where processes of this machine find a server that listens at `host`.

    >>> reachable("0.0.0.0"), reachable("::"), reachable("10.0.0.7")
    ('127.0.0.1', '::1', '10.0.0.7')
    """
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; a name but `localhost` may be anything.

    >>> [is_loopback(x) for x in ("127.0.1.7", "::1", "localhost", "0.0.0.0", "*")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_exposed(address: str) -> bool:
    """Whether other machines may reach it.

    Raises:
      AddressError: no address.
    """
    return not is_loopback(parse_address(address)[0])


def check_safe(address: str, keyed: bool, insecure: bool) -> None:
    """Nothing, if nobody can listen or speak there who has no key.

    Args:
      address: a server's.
      keyed: whether there are keys.
      insecure: somebody wants it all the same.

    Raises:
      AddressError: others can, or it is no address.
    """
    if is_exposed(address) and not keyed and not insecure:
        raise AddressError(
            f"address: other machines can reach {address}, and there are no keys; make "
            "some with asyn2f keys and give --config.runtime.keys_dir=FOLDER, or use "
            "127.0.0.1, or give --insecure to let anybody read and join"
        )
