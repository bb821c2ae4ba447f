"""Admission to a run: by key, or anybody where that was asked for."""

import sys
from pathlib import Path

from absl import flags

from asyn2f.config import build
from asyn2f.transport import keys
from asyn2f.transport.addresses import check_safe, is_exposed

INSECURE = flags.DEFINE_bool(
    "insecure", False, "Without keys, allow addresses that other machines can reach."
)


def server_keys(config: build.Config) -> keys.ServerKeys | None:
    """The server's keys; None: the config names none.

    Raises:
      KeysError: they cannot be used.
    """
    folder = config["runtime"]["keys_dir"]
    return keys.read_server_keys(Path(folder)) if folder else None


def peer_keys(config: build.Config, name: str) -> keys.PeerKeys | None:
    """The keys of the peer of that name; None: the config names none.

    Raises:
      KeysError: they cannot be used.
    """
    folder = config["runtime"]["keys_dir"]
    return keys.read_peer_keys(Path(folder), name) if folder else None


def check(address: str, keyed: bool, insecure: bool) -> None:
    """Checks that the address may be used without keys; warns where that is not safe.

    Raises:
      AddressError: it may not.
    """
    check_safe(address, keyed, insecure)
    if is_exposed(address) and not keyed:
        print(
            f"warning: insecure: whoever reaches {address} can read models and join",
            file=sys.stderr,
            flush=True,
        )
