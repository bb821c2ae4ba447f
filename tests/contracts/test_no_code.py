"""Nothing that comes from the wire or the store is ever executed (T12, S-12).

`multiprocessing` pickles what a parent gives its children at their start: that is the
parent's own, on no path from wire or store; afterwards the two speak JSON.
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


# ------------------------------------------------------------- the source


def offences(source: str) -> list[str]:
    """What in a source might execute what it reads, with line numbers."""
    return [
        f"line {getattr(node, 'lineno', 0)}: {found}"
        for node in ast.walk(ast.parse(source))
        if (found := _offence(node))
    ]


def _offence(node: ast.AST) -> str:
    match node:
        case ast.Import(names=names):
            bad = [a.name for a in names if a.name.split(".")[0] in UNPICKLERS]
            return f"imports {', '.join(bad)}" if bad else ""
        case ast.ImportFrom(module=module):
            root = (module or "").split(".")[0]
            return f"imports from {root}" if root in UNPICKLERS else ""
        case ast.Name(id=name) if name in EXECUTORS | {"__builtins__"}:
            return name
        case ast.Attribute(value=ast.Name(id="builtins"), attr=name):
            return f"builtins.{name}" if name in EXECUTORS else ""
        case ast.Attribute(attr="object_"):
            return "object dtype"
        case ast.Attribute(attr=name) if name in METHODS:
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
    assert found == {}


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
    ],
)
def test_the_gate_sees_what_it_is_for(source):
    assert offences(source)


def test_the_gate_lets_pass_what_is_none_of_it():
    source = "re.compile(x)\nnp.load(p, allow_pickle=False)\njson.loads(x)\nf.read()"
    assert offences(source) == []


# ------------------------------------------------------------- a real run


def test_a_whole_run_unpickles_nothing(tmp_path, monkeypatch):
    """Server, workers and evaluator over ZeroMQ with Orbax, and then a resumption."""
    calls = []

    def refuse(name):
        def called(*args, **kwargs):
            calls.append(name)
            raise AssertionError(f"{name} was called")

        return called

    import _pickle

    for module in (pickle, _pickle):
        for name in ("load", "loads", "Unpickler"):
            monkeypatch.setattr(module, name, refuse(f"{module.__name__}.{name}"))
    monkeypatch.setattr(np, "load", refuse("numpy.load"))
    with pytest.raises(AssertionError, match="was called"):
        pickle.loads(b"")
    calls.clear()

    store = OrbaxStore(tmp_path / "models")
    run = LocalRun(tmp_path, small(stop__max_versions=4), "zmq", store=store)
    run.start_evaluator()
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    assert summary["versions"] == 4
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


def gadgets(path: Path) -> dict[str, bytes]:
    """Twenty texts that would leave a file at `path`, were they executed."""
    made = {
        f"pickle protocol {n}": pickle.dumps(Gadget(path), protocol=n) for n in range(6)
    }
    code = compile(f"open({str(path)!r}, 'w')", "gadget", "exec")
    text = f"open({str(path)!r}, 'w')"
    array = io.BytesIO()
    np.save(array, np.array([Gadget(path)], object), allow_pickle=True)
    boxed = made["pickle protocol 4"]
    header = ["Hello", boxed]
    made |= {
        "marshal": marshal.dumps(code),
        "source": text.encode(),
        "import": f"__import__('builtins').{text}".encode(),
        "array of objects": array.getvalue(),
        "archive of objects": _npz(path),
        "msgpack extension": msgpack.packb(msgpack.ExtType(1, boxed)),
        "msgpack binary": msgpack.packb(header),
        "msgpack-numpy": msgpack.packb(
            {b"nd": True, b"type": "O", b"kind": b"O", b"shape": [1], b"data": boxed}
        ),
        "msgpack text": msgpack.packb(["Bye", text, text]),
        "jsonpickle": json.dumps({"py/reduce": [{"py/function": "open"}, [str(path)]]}),
        "json call": json.dumps({"kind": "__import__", "name": text}),
        "yaml": f"!!python/object/apply:builtins.open [{str(path)!r}, 'w']",
        "trace of code": json.dumps({"kind": "Stopped", "__reduce__": text}),
        "kind with dunder": msgpack.packb(["__class__", text]),
    }
    return {
        name: data.encode() if isinstance(data, str) else data
        for name, data in made.items()
    }


def _npz(path: Path) -> bytes:
    file = io.BytesIO()
    np.savez(file, params=np.array([Gadget(path)], object))
    return file.getvalue()


def test_the_gadgets_are_twenty_and_would_go_off(tmp_path):
    target = tmp_path / "fired"
    made = gadgets(target)
    assert len(made) == 20
    for name in [name for name in made if name.startswith("pickle")]:
        pickle.loads(made[name]).close()
        assert target.exists(), name
        target.unlink()
    np.load(io.BytesIO(made["array of objects"]), allow_pickle=True)[0].close()
    assert target.exists()


NUMBER = np.zeros((8,), np.float32)


@pytest.mark.parametrize("name", sorted(gadgets(Path("/nowhere"))))
def test_no_decoder_executes_a_gadget(tmp_path, name):
    target = tmp_path / "fired"
    gadget = gadgets(target)[name]
    template = template_of({"w": NUMBER})
    exact = gadget[: NUMBER.nbytes].ljust(NUMBER.nbytes, b"\0")

    with pytest.raises(errors.WireError):
        wire_format.decode(gadget)
    with contextlib.suppress(errors.WireError):
        serialization.decode_params(template, gadget)
    assert serialization.decode_params(template, exact)["w"].dtype == np.float32
    with pytest.raises(ValueError, match=r"line of a trace|can't decode|codec"):
        trace.from_line(gadget.decode("latin-1"))
    (tmp_path / "server.jsonl").write_bytes(gadget + b"\n{}\n")
    with pytest.raises(ValueError, match=r"server\.jsonl"):
        trace.read(tmp_path)
    (tmp_path / "config.json").write_bytes(gadget)
    with contextlib.suppress(errors.RunDirError, OSError, ValueError):
        rundir.read_json(tmp_path / "config.json")
    assert not target.exists()


def test_no_gadget_in_the_store_is_executed(tmp_path):
    """In place of every file of a version, and of what names the best one."""
    experiment = small()
    like = jax.eval_shape(lambda: initial_server_state(experiment))
    store = OrbaxStore(tmp_path / "models")
    store.begin_incarnation()
    store.save(0, initial_server_state(experiment), {"version": 0})
    files = [x for x in (tmp_path / "models" / "0").rglob("*") if x.is_file()]
    assert files
    target = tmp_path / "fired"
    chosen = [
        gadget
        for name, gadget in gadgets(target).items()
        if name in ("pickle protocol 2", "array of objects", "jsonpickle", "source")
    ]
    for file in files:
        before = file.read_bytes()
        for gadget in chosen:
            file.write_bytes(gadget)
            with contextlib.suppress(StoreError):
                store.load(0, like)
            assert not target.exists(), file
        file.write_bytes(before)
    for gadget in chosen:
        (tmp_path / "models" / "best.json").write_bytes(gadget)
        assert OrbaxStore(tmp_path / "models").best() == (None, None)
    assert not target.exists()
    assert int(store.load(0, like).state.model.version) == 0
