"""Nothing that is read from the wire or the store is ever executed (T12, S-12).

`multiprocessing` pickles what a parent passes to its children at their start, and a
pool of processes what it passes back: both ends are the parent's own, on no path from
wire or store. All other pipes carry bytes (JSON).
"""

import ast
import contextlib
import io
import json
import marshal
import pickle
from pathlib import Path

import jax
import msgpack
import numpy as np
import pytest

from asyn2f import errors, rundir, serialization, trace
from asyn2f.errors import StoreError
from asyn2f.protocol import wire_format
from asyn2f.serialization import template_of
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state
from tests.contracts.test_runtime import LocalRun, small

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in (ROOT / "src", ROOT / "launch", ROOT / "configs")
    for path in sorted(folder.rglob("*.py"))
]
UNPICKLERS = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal"),
    *("joblib", "jsonpickle", "yaml", "msgpack_numpy", "copyreg", "pandas"),
}
EXECUTORS = {"eval", "exec", "compile", "__import__"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized"}
# Of `multiprocessing`: each pickles what passes through it, as `Connection.send` does.
PICKLING_CHANNELS = {
    *("Queue", "SimpleQueue", "JoinableQueue", "Manager", "Pool", "Listener", "Client"),
}
POOLS = {"src/asyn2f/cli/compare.py"}  # of a parent and its own children


# ------------------------------------------------------------- the source


def offences(source: str) -> list[str]:
    """What in a source might execute what it reads, with line numbers."""
    tree = ast.parse(source)
    has_pipes = any(_imports(node, "multiprocessing") for node in ast.walk(tree))
    # A connection's `send` takes an object by position, its `recv` takes nothing.
    others = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if (node.func.attr == "recv") == bool(node.args)
    }
    return [
        f"line {getattr(node, 'lineno', 0)}: {found}"
        for node in ast.walk(tree)
        if (found := _offence(node) or (has_pipes and _pickled(node, others)))
    ]


def _imports(node: ast.AST, root: str) -> bool:
    match node:
        case ast.Import(names=names):
            return any(alias.name.split(".")[0] == root for alias in names)
        case ast.ImportFrom(module=module):
            return (module or "").split(".")[0] == root
    return False


def _pickled(node: ast.AST, others: set[int]) -> str:
    """What pickles in a source that knows pipes."""
    match node:
        case ast.Attribute(attr="send") | ast.Attribute(attr="recv"):
            return "" if id(node) in others else f"Connection.{node.attr}"
        case ast.Attribute(attr=name) if name in PICKLING_CHANNELS:
            return name
        case ast.ImportFrom(names=names) if _imports(node, "multiprocessing"):
            return ", ".join(x.name for x in names if x.name in PICKLING_CHANNELS)
    return ""


def _offence(node: ast.AST) -> str:
    match node:
        case ast.Import(names=names):
            bad = [a.name for a in names if a.name.split(".")[0] in UNPICKLERS]
            return f"imports {', '.join(bad)}" if bad else ""
        case ast.ImportFrom(module=module):
            root = (module or "").split(".")[0]
            if any(alias.name == "ProcessPoolExecutor" for alias in node.names):
                return "ProcessPoolExecutor"
            return f"imports from {root}" if root in UNPICKLERS else ""
        case ast.Name(id=name) if name in EXECUTORS | {"__builtins__"}:
            return name
        case ast.Attribute(value=ast.Name(id="builtins"), attr=name):
            return f"builtins.{name}" if name in EXECUTORS else ""
        case ast.Attribute(attr="object_"):
            return "object dtype"
        case ast.Attribute(attr=name) if name in METHODS | {"ProcessPoolExecutor"}:
            return name
        case ast.keyword(arg="allow_pickle", value=value):
            is_no = isinstance(value, ast.Constant) and value.value is False
            return "" if is_no else "allow_pickle"
        case ast.keyword(arg="dtype", value=value) if _is_object(value):
            return "object dtype"
        case ast.Call(func=ast.Attribute(attr="astype" | "dtype"), args=[first, *_]):
            return "object dtype" if _is_object(first) else ""
    return ""


def _is_object(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="object"):
            return True
        case ast.Constant(value="object" | "O" | "|O"):
            return True
    return False


def test_no_source_unpickles_evaluates_or_holds_objects():
    found = {
        path.relative_to(ROOT).as_posix(): bad
        for path in FILES
        if (bad := offences(path.read_text(encoding="utf-8")))
    }
    assert len(FILES) > 80
    assert found.keys() == POOLS
    assert all("ProcessPoolExecutor" in x for bad in found.values() for x in bad)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import marshal as m",
        "from cloudpickle import loads",
        "def f():\n    import pickle.x",
        "eval(text)",
        "run = exec",
        "compile(text, '', 'exec')",
        "builtins.eval(text)",
        "__import__(name)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "np.zeros(3, dtype=object)",
        "np.zeros(3, dtype='O')",
        "x.astype(object)",
        "np.dtype('object')",
        "x = np.object_",
        "socket.recv_pyobj()",
        "import multiprocessing\nhere.send(x)",
        "from multiprocessing.connection import Connection\nx = pipe.recv()",
        "import multiprocessing.connection as c\nreceive = pipe.recv",
        "import multiprocessing\nmultiprocessing.get_context().Queue()",
        "from multiprocessing import Pool",
        "from concurrent.futures import ProcessPoolExecutor",
        "concurrent.futures.ProcessPoolExecutor()",
    ],
)
def test_the_gate_finds_every_kind_of_offence(source):
    assert offences(source)


def test_the_gate_passes_what_is_harmless():
    source = (
        "import multiprocessing\nre.compile(x)\nnp.load(p, allow_pickle=False)\n"
        "json.loads(x)\nf.read()\npipe.send_bytes(b'')\npipe.recv_bytes()\n"
        "door.recv(64)\nchild.send(joined=True)\n"
    )
    assert offences(source) == []
    assert offences("next(program)\nprogram.send(event)\n") == []


# ------------------------------------------------------------- a real run


def test_a_whole_run_unpickles_nothing(tmp_path, monkeypatch):
    """Server, workers and evaluator over ZeroMQ, with write-ahead files and Orbax."""
    calls = []

    def refuse(name):
        def called(*args, **kwargs):
            calls.append(name)
            raise AssertionError(f"{name} was called")

        return called

    import _pickle

    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler", "dumps", "Pickler"):
            monkeypatch.setattr(module, name, refuse(f"{module.__name__}.{name}"))
    monkeypatch.setattr(np, "load", refuse("numpy.load"))
    with pytest.raises(AssertionError, match="was called"):
        pickle.loads(b"")
    calls.clear()

    store = OrbaxStore(tmp_path / "models", write_ahead=True)
    run = LocalRun(tmp_path, small(stop__max_versions=4), "zmq", store=store)
    run.start_evaluator()
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    store.close()
    assert summary["versions"] == 4
    assert (tmp_path / "models" / "4").is_dir()
    like = jax.eval_shape(lambda: initial_server_state(run.experiment))
    again = OrbaxStore(tmp_path / "models")
    assert int(again.load(4, like).state.model.version) == 4
    assert trace.read(tmp_path / "trace")
    assert calls == []


# ------------------------------------------------------------- gadgets


class Gadget:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self):
        return open, (self._path, "w")


def gadgets(path: Path) -> list[bytes]:
    """One of each family: payloads that would create a file at `path` if executed."""
    text = f"open({str(path)!r}, 'w')"
    pickled = pickle.dumps(Gadget(path), protocol=2)
    array = io.BytesIO()
    np.save(array, np.array([Gadget(path)], object), allow_pickle=True)
    msgpack_numpy = {b"nd": True, b"type": "O", b"shape": [1], b"data": pickled}
    jsonpickle = {"py/reduce": [{"py/function": "open"}, [str(path)]]}
    return [
        pickled,
        array.getvalue(),
        marshal.dumps(compile(text, "gadget", "exec")),
        text.encode(),
        msgpack.packb(msgpack.ExtType(1, pickled)),
        msgpack.packb(msgpack_numpy),
        json.dumps(jsonpickle).encode(),
        f"!!python/object/apply:builtins.open [{str(path)!r}, 'w']".encode(),
    ]


NUMBER = np.zeros((8,), np.float32)


def test_no_decoder_executes_a_gadget(tmp_path):
    target = tmp_path / "fired"
    pickle.loads(gadgets(target)[0]).close()
    assert target.exists(), "the gadgets work"
    target.unlink()
    template = template_of({"w": NUMBER})
    for gadget in gadgets(target):
        exact = gadget[: NUMBER.nbytes].ljust(NUMBER.nbytes, b"\0")
        with pytest.raises(errors.WireError):
            wire_format.decode(gadget)
        with contextlib.suppress(errors.WireError):
            serialization.decode_params(template, gadget)
        assert serialization.decode_params(template, exact)["w"].dtype == np.float32
        with pytest.raises(ValueError, match=r"trace event|can't decode|codec"):
            trace.from_line(gadget.decode("latin-1"))
        (tmp_path / "config.json").write_bytes(gadget)
        with contextlib.suppress(errors.RunDirError, OSError, ValueError):
            rundir.read_json(tmp_path / "config.json")
        assert not target.exists()


@pytest.mark.parametrize("is_ahead", [False, True])
def test_no_gadget_in_the_store_is_executed(tmp_path, is_ahead):
    """In place of every file of a version, and of the mark of the best one."""
    experiment, models = small(), tmp_path / "models"
    like = jax.eval_shape(lambda: initial_server_state(experiment))
    store = OrbaxStore(models, write_ahead=is_ahead)
    store.save(0, initial_server_state(experiment), {"version": 0})
    version = models / "ahead" if is_ahead else models / "0"
    files = [x for x in version.rglob("*") if x.is_file()]
    assert files
    target = tmp_path / "fired"
    for file in files:
        before = file.read_bytes()
        for gadget in gadgets(target):
            file.write_bytes(gadget)
            with contextlib.suppress(StoreError):
                store.load(0, like)
            assert not target.exists(), file
        file.write_bytes(before)
    for gadget in gadgets(target):
        (models / "best.json").write_bytes(gadget)
        assert OrbaxStore(models).best() is None
    assert not target.exists()
    assert int(store.load(0, like).state.model.version) == 0
    store.close()
