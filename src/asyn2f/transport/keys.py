"""Keys: how a server authenticates its peers, and a peer its server.

A folder of keys; each file is one line of 40 characters (Z85):

    server/secret.key               the server's own; stays where the server runs
    server/allowed/worker-3.public  the allow-list; delete a file to revoke its key
    worker-3/secret.key             the folder worker-3 goes to that worker's machine
    worker-3/server.public          the one server that worker 3 connects to

A key is named for the role of its owner: "worker-3", "evaluator".
"""

import logging
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import zmq

from asyn2f.errors import KeysError

SERVER = "server"
_PEER = re.compile(r"(evaluator|worker-(0|[1-9][0-9]{0,6}))\Z", re.ASCII)
_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\s*\Z")
_SECRET, _PUBLIC = "secret.key", ".public"
_ALLOWED = Path(SERVER, "allowed")


class ServerKeys(NamedTuple):
    """A server's own key, and the folder of its allow-list."""

    secret: bytes
    allowed: Path


class PeerKeys(NamedTuple):
    """A peer's own key, and the public key of its server."""

    secret: bytes
    server: bytes


def peers(workers: int) -> list[str]:
    """The names of a run's peers."""
    return ["evaluator", *(f"worker-{number}" for number in range(workers))]


def check_name(name: str) -> None:
    """Raises KeysError unless a peer can have this name."""
    if not _PEER.match(name):
        raise KeysError(
            f"found the name {name[:80]!r}, allowed: evaluator, worker-0, worker-1, ..."
        )


def create(folder: Path, names: Iterable[str]) -> None:
    """Creates a folder of keys for a server and these peers.

    Raises:
      KeysError: the folder holds keys already, or cannot be written.
    """
    names = list(names)
    for name in names:
        check_name(name)
    if (folder / SERVER).exists():
        raise KeysError(
            f"{folder} already holds keys, which are never overwritten; use "
            "--add=worker-10 for one more, or another --folder"
        )
    public, secret = zmq.curve_keypair()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / SERVER).mkdir(mode=0o700)
        (folder / _ALLOWED).mkdir(mode=0o700)
    except OSError as error:
        raise KeysError(f"cannot create {folder}: {error.strerror}") from None
    _write(folder / SERVER / _SECRET, secret)
    _write(folder / SERVER / f"{SERVER}{_PUBLIC}", public)
    for name in names:
        add(folder, name)


def add(folder: Path, name: str) -> None:
    """Creates the keys of one more peer, which a running server accepts at once.

    Raises:
      KeysError: the peer has keys already, the server has none, or they cannot be
        written.
    """
    check_name(name)
    server = _read(folder / SERVER / f"{SERVER}{_PUBLIC}")
    allowed = folder / _ALLOWED / f"{name}{_PUBLIC}"
    for old in (folder / name, allowed):
        if os.path.lexists(old):
            raise KeysError(
                f"{old} already exists, and keys are never overwritten; to replace "
                f"{name}'s, delete {folder / name} and {allowed} first"
            )
    public, secret = zmq.curve_keypair()
    try:
        (folder / name).mkdir(mode=0o700)
    except OSError as error:
        raise KeysError(f"cannot create {folder / name}: {error.strerror}") from None
    _write(folder / name / _SECRET, secret)
    _write(folder / name / f"{SERVER}{_PUBLIC}", server)
    _write(allowed, public)  # last: from now on it is accepted


def read_server_keys(folder: Path) -> ServerKeys:
    """The keys of a server.

    Raises:
      KeysError: they are missing, malformed, or accessible to other users.
    """
    _check_folder(folder)
    secret = _read_secret(folder / SERVER)
    allowed = folder / _ALLOWED
    _check_mode(allowed, 0o022, "others can add keys to it", "go-w")
    found = AllowList(allowed)
    if found.problems:
        raise KeysError("; ".join(found.problems))
    return ServerKeys(secret, allowed)


def read_peer_keys(folder: Path, name: str) -> PeerKeys:
    """The keys of the peer of this name.

    Raises:
      KeysError: they are missing, malformed, or accessible to other users.
    """
    _check_folder(folder)
    secret = _read_secret(folder / name)
    return PeerKeys(secret, _read_public(folder / name / f"{SERVER}{_PUBLIC}"))


class AllowList:
    """The public keys that a server accepts: a folder, read again as it changes.

    Attributes:
      problems: files that hold no valid key; they authenticate nobody.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self._names: dict[str, str] = {}
        self.problems: list[str] = []
        self.refresh()

    def name_of(self, key: str) -> str | None:
        """The name of the owner of this key (Z85); None if it is not accepted."""
        return self._names.get(key)

    def refresh(self) -> bool:
        """Reads the folder again if it has changed; returns whether a key was
        revoked."""
        before = set(self._names)
        self._refresh()
        return bool(before - self._names.keys())

    def _refresh(self) -> None:
        try:
            seen = sorted(
                (entry.name, status.st_ino, status.st_mtime_ns, status.st_size)
                for entry in os.scandir(self._folder)
                for status in [entry.stat(follow_symlinks=False)]
            )
        except OSError as error:
            # Nobody is accepted then, rather than anybody.
            self._seen, self._names = None, {}
            self.problems = [f"cannot read {self._folder}: {error.strerror}"]
            return
        if seen != self._seen:
            self._seen = seen
            self._read([name for name, *_ in seen])
            for problem in self.problems:
                logging.warning("keys: %s", problem)

    def _read(self, files: list[str]) -> None:
        self._names, self.problems = {}, []
        for file in files:
            if not file.endswith(_PUBLIC):
                continue  # created by an editor, or the system
            name = file.removesuffix(_PUBLIC)
            try:
                check_name(name)
                key = _read_public(self._folder / file).decode()
            except KeysError as error:
                self.problems.append(str(error))
                continue
            other = self._names.setdefault(key, name)
            if other != name:
                self.problems.append(f"{name} and {other} have the same key")


def _read_secret(folder: Path) -> bytes:
    path = folder / _SECRET
    secret = _read(path)
    _check_mode(folder, 0o022, "others can change its content", "700")
    _check_mode(path, 0o077, "others can read it", "600")
    return secret


def _read_public(path: Path) -> bytes:
    key = _read(path)
    _check_mode(path, 0o022, "others can replace the key", "go-w")
    return key


def _check_folder(folder: Path) -> None:
    """A user with write access to the folder of keys can replace the folders in it."""
    _check_mode(folder, 0o022, "others can change its content", "go-w")


def _check_mode(path: Path, forbidden: int, problem: str, remedy: str) -> None:
    """Validates that a path belongs to this user or to root, and grants other users
    none of the forbidden rights.

    Raises:
      KeysError: it does not; names the remedy.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}") from None
    mode, own = stat.S_IMODE(status.st_mode), os.geteuid()
    if status.st_uid not in (own, 0):
        raise KeysError(
            f"{path} belongs to user {status.st_uid}, this process to {own}: its owner "
            f"can change it; run chown {own} {path}, or create keys of your own"
        )
    if mode & forbidden:
        raise KeysError(
            f"{path} has mode {mode:04o}: {problem}; run chmod {remedy} {path}"
        )


def _read(path: Path) -> bytes:
    """The key in a file. Raises KeysError if there is none."""
    try:
        with path.open("rb") as file:
            line = file.read(64)
    except OSError as error:
        raise KeysError(
            f"cannot read {path}: {error.strerror}; asyn2f keys creates keys"
        ) from None
    if not _KEY.match(line):
        raise KeysError(f"{path} is not a key: expected one line of 40 characters")
    return line.strip()


def _write(path: Path, key: bytes) -> None:
    """Writes a new file that only its owner can read.

    Raises:
      KeysError: the file exists already, or cannot be written.
    """
    try:
        # Created with its mode, as a chmod would come too late.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key + b"\n")
    except OSError as error:
        raise KeysError(f"cannot write {path}: {error.strerror}") from None
