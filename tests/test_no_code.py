"""Nothing that comes from the wire or the store is ever executed (T12, S-12).

What remains of pickle is not on such a path: `multiprocessing` hands a config to the
processes that `launch.local` and `launch.compare` themselves start.
"""

import ast
import collections
import contextlib
import json
import pickle
import sys
import threading
from pathlib import Path

import msgpack
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.experiment import initial_server_state
from asyn2f.runtime import payloads, wire
from asyn2f.runtime.peer import Letter, open_letter
from asyn2f.runtime.server import start_of
from asyn2f.runtime.store import OrbaxStore, StoreError
from asyn2f.runtime.transport import UPDATES, Channel, Frames
from tests.office import Office
from tests.test_runtime import LocalRun, small

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "src").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]

# ------------------------------------------------------------- in the source

MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal"}
MODULES |= {"shelve", "yaml", "jsonpickle", "msgpack_numpy", "code", "ctypes"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"recv_pyobj", "send_pyobj", "import_module", "exec_module", "object_"}
# Hover texts of a page, made there; no array of it is ever read from anywhere.
ALLOWED = {"src/asyn2f/report/comparison_page.py": ["dtype=object"]}


def offences(source: str) -> list[str]:
    """What in a source could execute what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            found += sorted(names & MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module.split(".")[0]}
            found += sorted(names & MODULES)
        elif isinstance(node, ast.Call):
            found += _in_call(node)
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(node.attr)
    return found


def _in_call(node: ast.Call) -> list[str]:
    found, called = [], node.func
    if isinstance(called, ast.Name) and called.id in CALLS:
        found.append(called.id)
    for keyword in node.keywords:
        value = keyword.value
        is_false = isinstance(value, ast.Constant) and value.value is False
        if keyword.arg == "allow_pickle" and not is_false:
            found.append("allow_pickle")
        is_object = isinstance(value, ast.Name) and value.id == "object"
        is_letter = isinstance(value, ast.Constant) and value.value in ("O", "object")
        if keyword.arg == "dtype" and (is_object or is_letter):
            found.append("dtype=object")
        if keyword.arg == "shell" and not is_false:
            found.append("shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_source_executes_what_it_reads(path):
    found = offences(path.read_text(encoding="utf-8"))
    assert found == ALLOWED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import os, marshal",
        "np.load(f, allow_pickle=True)",
        "np.array(x, dtype=object)",
        "np.zeros(3, dtype='O')",
        "x.astype(np.object_)",
        "eval(text)",
        "exec(text)",
        "socket.recv_pyobj()",
        "importlib.import_module(name)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_gate_sees_what_it_is_to_see(source):
    assert offences(source)


# ------------------------------------------------------------- in a run


class Unpickled(AssertionError):
    """Somebody has unpickled something."""


@pytest.fixture
def no_pickles(monkeypatch):
    """Whoever unpickles, raises; also through C and through names taken before."""
    small()  # reads the data: scikit-learn's imports are made before the trap is set
    seen, on = [], [True]

    def refuse(*args, **named):
        seen.append(args[:1])
        raise Unpickled("something was unpickled")

    for name in ("load", "loads", "_load", "_loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)

    def audit(event, args):
        # Raised by both unpicklers for each name that they look up.
        if on[0] and event == "pickle.find_class":
            refuse(args)

    sys.addaudithook(audit)  # it cannot be taken away, only put to sleep
    yield seen
    on[0] = False


def test_the_trap_works(no_pickles):
    from _pickle import loads  # the one in C, which was not replaced

    data = pickle.dumps(collections.OrderedDict())
    for load in (pickle.loads, loads):
        with pytest.raises(Unpickled):
            load(data)
    assert len(no_pickles) == 2


def test_a_run_over_sockets_and_its_store_unpickles_nothing(
    tmp_path, no_pickles, monkeypatch
):
    """Server, two workers and the evaluator, and the server that resumes from it."""
    raised: list[object] = []  # in any thread
    monkeypatch.setattr(threading, "excepthook", raised.append)
    experiment = small(workers=2, stop__max_versions=3, task__sizes=(96, 64))
    store = OrbaxStore(tmp_path / "models")
    run = LocalRun(tmp_path, experiment, "zmq", store=store)
    for number in range(2):
        run.start_worker(number)
    run.start_evaluator()
    summary = run.finish()
    begun = start_of(experiment, store)
    store.close()
    assert (summary["status"], summary["versions"]) == ("finished", 3)
    assert int(begun.state.model.version) == 3
    assert run.events(trace.Evaluated)
    assert not raised
    assert not no_pickles


# ------------------------------------------------------------- gadgets


class Gadget:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def gadgets(path: Path) -> list[bytes]:
    """Twenty things that execute something wherever they are believed."""
    pickles = [pickle.dumps(Gadget(path), protocol) for protocol in range(6)]
    line = f"__import__('pathlib').Path({str(path)!r}).touch()"
    array = np.empty(1, object)
    array[0] = Gadget(path)
    npy = b"\x93NUMPY\x01\x00\x76\x00" + (
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    )
    call = {"py/object": "pathlib.Path", "py/reduce": [{"py/function": line}]}
    found = [
        *pickles,
        b"cos\nsystem\n(S'touch " + str(path).encode() + b"'\ntR.",
        npy + pickle.dumps(array),
        b"PK\x03\x04" + npy + pickle.dumps(array),
        line.encode(),
        f"lambda: {line}".encode(),
        f"!!python/object/apply:os.system ['touch {path}']".encode(),
        f"#!/bin/sh\ntouch {path}\n".encode(),
        f"$(touch {path})".encode(),
        json.dumps(call).encode(),
        json.dumps({"kind": line}).encode(),
        json.dumps({"kind": "__class__", "__reduce__": line}).encode(),
        msgpack.packb(msgpack.ExtType(1, pickles[2])),
        msgpack.packb({b"nd": True, b"type": b"O", b"kind": b"O", b"data": pickles[2]}),
        msgpack.packb(["__import__", line]),
    ]
    assert len(found) == 20
    return found


def test_the_gadgets_work(tmp_path):
    target = tmp_path / "touched"
    pickle.loads(gadgets(target)[3])
    assert target.exists()


def test_no_decoder_follows_a_gadget(tmp_path):
    target = tmp_path / "touched"
    office = Office(tmp_path / "office")
    office.join(0, "w0")
    template = office.experiment.template
    header = office.server._made().header
    for number, gadget in enumerate(gadgets(target)):
        with pytest.raises(wire.WireError):
            wire.decode(gadget)
        with pytest.raises(wire.WireError):
            payloads.decode_params(template, gadget)
        told = header._replace(num_bytes=len(gadget), digest=payloads.digest(gadget))
        with pytest.raises(wire.WireError):
            open_letter(office.experiment, Letter(told, gadget))
        with pytest.raises(ValueError, match="not a line"):
            trace.from_line(gadget.decode(errors="replace"))
        for channel in Channel:
            office.put(Frames(channel, gadget[:128], gadget, gadget))
        office.push(*office.update(0, "w0", number)[:1], gadget)
        packed = wire.encode(office.update(0, "w0", 100 + number)[0])
        for name in ("run", "digest", "fingerprint"):
            fields = msgpack.unpackb(packed)
            fields[1 + wire.UpdateHeader._fields.index(name)] = gadget
            bad = msgpack.packb(fields)
            office.put(Frames(Channel.UPDATE, UPDATES, bad, gadget))
    assert office.version == 0
    assert office.is_empty
    assert not target.exists()
    office.close()


def test_no_gadget_in_the_store_is_followed(tmp_path):
    """In the place of each file of a version that is not an array's."""
    target, store = tmp_path / "touched", OrbaxStore(tmp_path / "models")
    experiment = small()
    state = initial_server_state(experiment)
    store.save(0, state, {"run": "run-1", "incarnation": 1, "version": 0})
    folder = tmp_path / "models" / "0"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.stat().st_size < 100_000]
    assert texts
    found = gadgets(target)
    for number, path in enumerate(texts):
        sound = path.read_bytes()
        for gadget in found[number % 2 :: 2] if "record" not in str(path) else found:
            path.write_bytes(gadget)
            with contextlib.suppress(StoreError):
                store.load(0, state)
            store.record(0)
        path.write_bytes(sound)
    assert int(store.load(0, state).state.model.version) == 0
    store.close()
    assert not target.exists()
