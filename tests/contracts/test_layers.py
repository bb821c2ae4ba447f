"""Imports follow the arrows drawn here, and each library is known to one place."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "asyn2f"

# What a package or loose module may import; of every module: errors, settings, types.
ARROWS = {
    "errors": "",
    "types": "",
    "settings": "",
    "failpoints": "",
    "privacy": "",
    "timing": "",
    "rundir": "",
    "serialization": "",
    "kernels": "",
    "strategies": "kernels privacy timing",
    "tasks": "",
    "programs": "timing",
    "trace": "rundir",
    "training": "kernels privacy serialization strategies tasks timing trace",
    "protocol": "programs serialization timing trace",
    "transport": "protocol",
    "store": "failpoints rundir serialization",
    "runtime": "failpoints kernels programs protocol serialization store strategies "
    "trace training transport",
    "sim": "kernels programs serialization timing trace training",
    "report": "kernels privacy protocol rundir trace",
    "config": "kernels privacy protocol rundir sim store strategies tasks timing "
    "training transport",
    "api": "config report rundir serialization sim store strategies tasks timing trace "
    "training",
    "cli": "api config failpoints privacy protocol report rundir runtime serialization "
    "sim store strategies tasks timing trace training transport",
}
EVERYBODY = {"errors", "types", "settings"}
ONLY_IN = {
    "zmq": {"transport/zmq", "transport/keys.py"},
    "orbax": {"store/formats.py", "store/arrays.py"},
    "flax": {"tasks/"},
    "ml_collections": {"config/", "cli/"},
    "absl": {"cli/"},
    "plotly": {"report/"},
    "rich": {"report/", "cli/"},
    "tensorboardX": {"report/"},
    "sklearn": {"tasks/"},
    "imblearn": {"tasks/quality.py"},
    "cleanlab": {"tasks/quality.py"},
}
# What does no I/O knows no clock, thread, socket or file.
PURE = [
    *("types.py", "timing.py", "programs/*"),
    *("kernels/*", "strategies/*", "protocol/*"),
    *("training/trainer.py", "training/batches.py", "training/computation.py"),
    *("training/settings.py", "sim/virtual_server.py", "sim/executors/stretches.py"),
    *("training/experiment.py", "trace/events.py", "trace/ordering.py"),
    *("trace/artifacts.py", "trace/causality.py", "trace/checks.py"),
    *("trace/history.py", "trace/invariants.py", "trace/provenance.py"),
    *("trace/lines.py", "trace/records.py"),
    *("sim/order.py", "sim/schedule.py", "sim/world.py"),
    *(
        "sim/virtual_worker.py",
        "sim/from_trace.py",
        "sim/executors/plan.py",
        "sim/executors/planning.py",
        "sim/executors/packing.py",
    ),
    *(
        "sim/executors/barriers.py",
        "sim/executors/free_slots.py",
        "sim/executors/workers.py",
    ),
    *("training/sharing.py", "training/optimizers.py", "training/progress.py"),
    *("training/evaluation.py", "privacy.py"),
]
IO = {"time", "threading", "socket", "os", "pathlib", "zmq", "orbax", "subprocess"}

FILES = sorted(SOURCE.rglob("*.py"))


@functools.cache
def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    """The packages and loose modules of asyn2f that a file imports."""
    parts = [name.split(".") for name in imports_of(path)]
    return {p[1] for p in parts if p[0] == "asyn2f" and len(p) > 1} & ARROWS.keys()


def test_every_room_has_its_arrows():
    rooms = {path.relative_to(SOURCE).with_suffix("").parts[0] for path in FILES}
    assert rooms - {"__init__"} == ARROWS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_follow_the_arrows(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own == "__init__":
        return
    allowed = {own, *ARROWS[own].split(), *EVERYBODY}
    assert rooms_imported(path) <= allowed


def test_the_arrows_have_no_cycle():
    placed: set[str] = set()
    while len(placed) < len(ARROWS):
        ready = {
            room for room, to in ARROWS.items() if {*to.split()} <= placed
        } - placed
        assert ready, f"a cycle among {sorted(ARROWS.keys() - placed)}"
        placed |= ready


def test_no_arrow_is_drawn_that_nobody_uses():
    used: dict[str, set[str]] = {room: set() for room in ARROWS}
    for path in FILES:
        own = path.relative_to(SOURCE).with_suffix("").parts[0]
        if own != "__init__":
            used[own] |= rooms_imported(path)
    assert {room: {*to.split()} - used[room] for room, to in ARROWS.items()} == dict(
        (room, set()) for room in ARROWS
    )


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_to_one_place(library):
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    others = [
        user for user in users if not any(user.startswith(p) for p in ONLY_IN[library])
    ]
    assert not others


@pytest.mark.parametrize("pattern", PURE)
def test_what_does_no_io_cannot(pattern):
    paths = [path for path in SOURCE.glob(pattern) if path.suffix == ".py"]
    assert paths
    for path in paths:
        roots = {found.split(".")[0] for found in imports_of(path)}
        assert not roots & IO, path


def test_a_worker_loads_nothing_that_only_others_need():
    """Each of these is a part of a second of every worker's start."""
    needless = "orbax tensorstore tensorflow_datasets tensorboardX plotly sklearn"
    code = (
        "import sys, asyn2f.cli.peers\n"
        f"found = [name for name in {needless.split()!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_package_itself_loads_at_once():
    """`asyn2f --help` and the launcher's first step wait for no numerical library."""
    code = (
        "import sys, asyn2f, asyn2f.cli.main\n"
        "found = [name for name in ('jax', 'numpy', 'absl') if name in sys.modules]\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
