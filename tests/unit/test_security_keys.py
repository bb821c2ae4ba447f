"""Keys on disk: made once, private, and named after workers and evaluators only."""

import os
import stat
from types import SimpleNamespace

import pytest
import zmq

from asyn2f import errors
from asyn2f.cli import tools
from asyn2f.errors import AddressError, KeysError
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import Channel, Frames
from asyn2f.runtime.io_thread import IoThread
from asyn2f.transport import keys
from asyn2f.transport.base import check_safe, is_loopback
from asyn2f.transport.keys import AllowList
from asyn2f.transport.zmq import ZmqTransport
from tests.support.messages import hello_of
from tests.support.rogue_peers import Keyring


@pytest.fixture
def ring(tmp_path):
    return Keyring(tmp_path / "keys", workers=3)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def content(folder):
    return {x: x.read_bytes() for x in folder.rglob("*") if x.is_file()}


# ------------------------------------------------------------- what is made


def test_each_peer_has_a_folder_with_what_it_needs_and_nothing_else(ring):
    found = {x.relative_to(ring.folder).as_posix() for x in content(ring.folder)}
    peers = ["evaluator", "worker-0", "worker-1", "worker-2"]
    assert found == {
        "server/secret.key",
        "server/server.public",
        *(f"server/allowed/{name}.public" for name in peers),
        *(f"{name}/secret.key" for name in peers),
        *(f"{name}/server.public" for name in peers),
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_any_of_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        keys.create(tmp_path / "keys", keys.peers(1))
    finally:
        os.umask(before)
    for path in (tmp_path / "keys", *(tmp_path / "keys").rglob("*")):
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_keys_belong_together(ring):
    server = ring.server
    allowed = AllowList(server.allowed)
    for name in keys.peers(3):
        own = ring.peer(name)
        assert own.server == zmq.curve_public(server.secret)
        assert allowed.name_of(zmq.curve_public(own.secret).decode()) == name
    assert allowed.name_of(ring.unknown_key().secret.decode()) is None
    assert allowed.name_of(zmq.curve_public(server.secret).decode()) is None


def test_all_secrets_differ(ring):
    secrets = [x.read_bytes() for x in ring.folder.rglob("secret.key")]
    assert len(secrets) == len(set(secrets)) == 5


def test_keys_are_never_overwritten(ring):
    before = content(ring.folder)
    with pytest.raises(KeysError, match="already holds keys"):
        keys.create(ring.folder, keys.peers(3))
    with pytest.raises(KeysError, match="already exists"):
        keys.add(ring.folder, "worker-1")
    ring.revoke("worker-1")
    with pytest.raises(KeysError, match=r"delete .*worker-1 and .*public first"):
        keys.add(ring.folder, "worker-1")
    left = content(ring.folder)
    assert left == {x: before[x] for x in left}
    assert len(before) - len(left) == 1


def test_a_peer_can_be_added(ring):
    before = content(ring.folder)
    keys.add(ring.folder, "worker-10")
    assert ring.peer("worker-10").server == ring.peer("worker-0").server
    public = zmq.curve_public(ring.peer("worker-10").secret).decode()
    assert AllowList(ring.server.allowed).name_of(public) == "worker-10"
    after = content(ring.folder)
    assert before == {x: after[x] for x in before}


def test_a_peer_cannot_be_added_without_a_server(tmp_path):
    with pytest.raises(KeysError, match=r"cannot read .*asyn2f keys creates keys"):
        keys.add(tmp_path / "none", "worker-0")


# ------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [0o604, 0o640, 0o660, 0o644, 0o602])
@pytest.mark.parametrize("who", ["server", "worker-1"])
def test_an_accessible_secret_is_refused_with_the_remedy(ring, who, bad):
    path = ring.folder / who / "secret.key"
    path.chmod(bad)
    with pytest.raises(KeysError, match=rf"mode {bad:04o}.*run chmod 600 {path}"):
        ring.server if who == "server" else ring.peer(who)
    path.chmod(0o600)
    assert ring.server if who == "server" else ring.peer(who)


def test_a_folder_writable_by_others_is_refused(ring):
    ring.server.allowed.chmod(0o770)
    with pytest.raises(KeysError, match="others can add keys to it; run chmod go-w"):
        _ = ring.server
    ring.server_folder = ring.folder / "worker-1"
    ring.server_folder.chmod(0o777)
    with pytest.raises(KeysError, match="others can change its content"):
        ring.peer("worker-1")


@pytest.mark.parametrize("bad", [0o646, 0o662])
def test_a_public_key_writable_by_others_is_refused(ring, bad):
    servers = ring.folder / "worker-1" / "server.public"
    servers.chmod(bad)
    with pytest.raises(KeysError, match=rf"mode {bad:04o}.*run chmod go-w {servers}"):
        ring.peer("worker-1")
    allowed = ring.server.allowed / "worker-1.public"
    allowed.chmod(bad)
    with pytest.raises(KeysError, match=rf"mode {bad:04o}.*run chmod go-w {allowed}"):
        _ = ring.server
    public = zmq.curve_public((ring.folder / "worker-1/secret.key").read_bytes()[:40])
    assert AllowList(allowed.parent).name_of(public.decode()) is None


def test_a_writable_folder_of_keys_is_refused(ring):
    ring.folder.chmod(0o775)
    for read in (lambda: ring.server, lambda: ring.peer("worker-1")):
        with pytest.raises(KeysError, match=rf"0775.*run chmod go-w {ring.folder}"):
            read()


def test_keys_of_another_user_are_refused(ring, monkeypatch):
    own = os.geteuid()
    os.stat(ring.folder)
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    if own == 0:  # root's are everybody's: give them to another
        for path in [ring.folder, *ring.folder.rglob("*")]:
            os.chown(path, 4321, 4321)
    for read in (lambda: ring.server, lambda: ring.peer("worker-1")):
        with pytest.raises(KeysError, match=r"belongs to user .*run chown"):
            read()


@pytest.mark.parametrize(
    "text", [b"", b"short", b"x" * 41, b"x" * 4000, b"\xff" * 40, b"a" * 39 + b"\\"]
)
def test_a_file_without_a_key_is_refused(ring, text):
    path = ring.folder / "worker-1" / "secret.key"
    path.write_bytes(text)
    with pytest.raises(KeysError, match="is not a key"):
        ring.peer("worker-1")


def test_a_missing_key_is_named(ring):
    with pytest.raises(KeysError, match=r"worker-7/secret\.key: No such file"):
        ring.peer("worker-7")


# ------------------------------------------------------------- the allow-list


def test_an_allow_list_follows_its_folder(ring):
    allowed = AllowList(ring.server.allowed)
    public = zmq.curve_public(ring.peer("worker-1").secret)
    file = ring.server.allowed / "worker-1.public"
    for _ in range(50):  # within one tick of the file system's clock as well
        file.unlink()
        allowed.refresh()
        assert allowed.name_of(public.decode()) is None
        file.write_bytes(public)
        allowed.refresh()
        assert allowed.name_of(public.decode()) == "worker-1"


def test_invalid_files_neither_admit_nor_exclude_anybody(ring, caplog):
    folder = ring.server.allowed
    (folder / "worker-1.public").write_bytes(b"half a ke")
    (folder / "worker-0\n.public").write_bytes(ring.unknown_key().secret)
    (folder / "admin.public").write_bytes(ring.unknown_key().secret)
    (folder / "worker-7.public").write_bytes((folder / "worker-2.public").read_bytes())
    (folder / "worker-8.public").mkdir()
    (folder / "notes.txt").write_bytes(b"not a key")
    allowed = AllowList(folder)
    assert len(allowed.problems) == 5
    names = {
        name: allowed.name_of(zmq.curve_public(ring.peer(name).secret).decode())
        for name in keys.peers(3)
    }
    assert names == {
        "evaluator": "evaluator",
        "worker-0": "worker-0",
        "worker-1": None,
        "worker-2": "worker-2",
    }
    with pytest.raises(KeysError, match="same key"):
        _ = ring.server  # before a run begins, all of it must be right


def test_a_missing_allow_list_admits_nobody(ring):
    allowed = AllowList(ring.server.allowed)
    public = zmq.curve_public(ring.peer("worker-1").secret).decode()
    ring.server.allowed.rename(ring.folder / "elsewhere")
    allowed.refresh()
    assert allowed.name_of(public) is None
    (ring.folder / "elsewhere").rename(ring.folder / "server" / "allowed")
    allowed.refresh()
    assert allowed.name_of(public) == "worker-1"


# ------------------------------------------------------------- S-13: names

NAMES = [
    *("", " ", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b"),
    *("worker-0/", "worker-0/../x", "./worker-0", "~", "~root", "$HOME", "`id`"),
    *("worker-\u0661", "w\u043erker-0", "worker-\uff10", "worker\u2010 0", "worker-²"),
    *("worker-0\n", "worker-0\x00", "\x00", "worker-0\x00.public", "\nworker-0"),
    *("worker-00", "worker-01", "worker--1", "worker-+1", "worker- 1", "worker-1e3"),
    *("Worker-0", "WORKER-0", "worker_0", "worker-", "worker", "evaluators"),
    *("server", "Evaluator", "evaluator ", " evaluator", "evaluator\t", "con"),
    *(
        "worker-0;rm -rf",
        "worker-0|x",
        "%2e%2e%2f",
        "{0}",
        "%s%n",
        "\x1b[31m",
        "\u202e",
    ),
    *("worker-99999999", "worker-0.public", "x" * 10_000, "\U0001f511"),
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_other_name_becomes_a_file(ring, name):
    before = content(ring.folder.parent)
    with pytest.raises(KeysError) as error:
        keys.add(ring.folder, name)
    assert "found the name" in str(error.value)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()
    assert content(ring.folder.parent) == before


def test_no_such_name_is_a_valid_run_or_session():
    """Those become parts of topics and of file names."""
    allowed = {"worker-00", "worker-01", "worker--1", "Worker-0", "WORKER-0", "con"}
    allowed |= {"worker_0", "worker-", "worker", "evaluators", "server", "Evaluator"}
    allowed |= {"worker-99999999", "worker-1e3"}  # letters, digits, _ and - only
    assert len(NAMES) >= 50
    for name in set(NAMES) - allowed:
        for message in (hello_of(0, name), messages.Goodbye(name, "")):
            with pytest.raises(errors.WireError):
                wire_format.decode(wire_format.encode(message))


def test_messages_with_invalid_names_are_dropped(ring):
    dropped = IoThread(None, None, None, None)  # type: ignore[arg-type]
    for name in NAMES:
        for text in (name, name * 3 or "/"):
            header = wire_format.encode(messages.Goodbye(f"{text}/", ""))
            dropped._take(Frames(Channel.CONTROL, b"", header, b""))
    assert sum(dropped.dropped.values()) == 2 * len(NAMES)


def test_the_number_of_distinct_reasons_is_bounded():
    thread = IoThread(None, None, None, None)  # type: ignore[arg-type]
    for number in range(2000):
        header = wire_format.msgpack.packb([f"Kind{number}"])
        thread._take(Frames(Channel.CONTROL, b"", header, b""))
    assert sum(thread.dropped.values()) == 2000
    assert len(thread.dropped) < 300


# ------------------------------------------------------------- addresses

LOOPBACK = ["127.0.0.1", "127.0.1.7", "127.255.255.254", "::1", "localhost"]
EXPOSED = [
    *("0.0.0.0", "*", "::", "10.0.0.1", "192.168.1.2", "eth0", "example.org"),
    *("127.1", "2130706433", "0x7f000001", "127.0.0.1.example.org", "localhost."),
    *("128.0.0.1", "::2", "fe80::1", "localhost.example.org"),
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    check_safe(f"tcp://[{host}]:5" if ":" in host else f"tcp://{host}:5", False, False)


@pytest.mark.parametrize("host", EXPOSED)
def test_any_other_address_needs_keys_or_insecure(ring, host):
    address = f"tcp://[{host}]:5570" if ":" in host else f"tcp://{host}:5570"
    assert not is_loopback(host)
    for use in (
        lambda: ZmqTransport.bind(address, 100, 1),
        lambda: ZmqTransport.connect_to(address, 100, 1),
    ):
        with pytest.raises(AddressError, match=r"asyn2f keys.*--insecure") as error:
            use()
        assert "\n" not in str(error.value)
    check_safe(address, keyed=True, insecure=False)
    check_safe(address, keyed=False, insecure=True)


def test_with_keys_or_insecure_a_wildcard_can_be_bound(ring):
    ZmqTransport.bind("tcp://*:0", 100, 1, keys=ring.server).close()
    ZmqTransport.bind("tcp://0.0.0.0:0", 100, 1, keys=ring.server).close()
    ZmqTransport.bind("tcp://0.0.0.0:0", 100, 1, insecure=True).close()


def test_the_program_counts_new_peers_and_further_ones(tmp_path, monkeypatch, capsys):
    def run(workers, add):
        folder = SimpleNamespace(value=str(tmp_path / "ring"), name="folder")
        monkeypatch.setattr(tools, "_FOLDER", folder)
        monkeypatch.setattr(tools, "_WORKERS", SimpleNamespace(value=workers))
        monkeypatch.setattr(tools, "_ADD", SimpleNamespace(value=add))
        assert tools.keys() == 0
        return capsys.readouterr().out.partition(" may ")[0]

    assert run(2, []) == "3 peers"
    assert run(None, ["worker-7"]) == "1 more peer"
    assert run(None, ["worker-8", "worker-9"]) == "2 more peers"
