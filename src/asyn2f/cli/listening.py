"""Where the server of a run listens, as it leaves it in the run's folder.

Without keys the file holds a token too, which peers present when they register: who can
read it (its owner) can join.
"""

import secrets
from pathlib import Path
from typing import Any, NamedTuple

from asyn2f import rundir
from asyn2f.errors import AddressError, RunDirError
from asyn2f.transport.addresses import (
    parse_address,
)


class Listening(NamedTuple):
    """The content of `server.json`."""

    address: str
    ports: tuple[int, int, int]
    run: str
    token: str  # "" = there are keys, or nobody is to be kept out


def write(folder: Path, listening: Listening) -> None:
    """Writes it, for its owner alone."""
    content = listening._asdict()
    rundir.write_json(folder / rundir.SERVER, content, is_private=True)


def read(folder: Path) -> Listening:
    """What the server has left there.

    Raises:
      RunDirError: nothing, or nothing that a server would.
    """
    path = folder / rundir.SERVER
    found: Any = rundir.read_json(path)
    try:
        kept = Listening(
            found["address"],
            tuple(found["ports"]),
            found.get("run", ""),
            found.get("token", ""),
        )
        parse_address(kept.address)
        is_good = all(type(port) is int and 0 < port < 2**16 for port in kept.ports)
        if not (is_good and len(kept.ports) == 3 and isinstance(kept.token, str)):
            raise ValueError(f"ports {kept.ports}"[:80])
    except (AttributeError, KeyError, TypeError, ValueError, AddressError) as error:
        raise RunDirError(
            f"{path} is not what a server leaves there ({type(error).__name__}: "
            f"{error}); delete it, and give workers the address with --server"
        ) from None
    return kept


def token_of(folder: Path) -> str:
    """The token that a peer on the server's machine presents, or ""."""
    try:
        return read(folder).token
    except RunDirError:
        return ""


def new_token() -> str:
    return secrets.token_hex(16)
