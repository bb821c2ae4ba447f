"""Imports point downwards only, and each library is known to one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "asyn2f"

# A module may import modules of its own layer and of those below it.
LAYERS = [
    {"types", "timing", "status", "caches"},
    {"trees", "staleness", "aggregation", "deltas", "codecs", "merging", "guards"},
    {"strategies", "tasks"},
    {
        *("trainer", "epochs", "programs", "trace", "evaluate", "experiment"),
        *("workdir", "claim", "lineage", "causality", "invariants", "provenance"),
        *("events", "ordering", "segments", "accounts", "collection", "computation"),
        "agreement",
    },
    {"sim", "runtime", "report"},
    {"build", "rules"},
    {"simulation"},
]
NEVER = [
    ("strategies", "tasks"),
    ("tasks", "strategies"),
    ("sim", "runtime"),
    ("runtime", "sim"),
    ("sim", "report"),
    ("runtime", "report"),
]
ONLY_IN = {
    "zmq": {"runtime/zmq_", "runtime/keys.py"},
    "orbax": {"runtime/orbax_"},
    "flax": {"tasks/models.py", "tasks/convolution.py", "tasks/classification.py"},
    "ml_collections": set(),  # configs and launch alone
    "absl": set(),  # launch alone
    "plotly": {"report/"},
    "rich": {"report/"},
    "tensorboardX": {"report/"},
    "sklearn": {"tasks/data.py", "tasks/quality.py"},
    "imblearn": {"tasks/quality.py"},
    "cleanlab": {"tasks/quality.py"},
}
# What does no I/O knows no clock, thread, socket or file.
PURE = {
    "types.py",
    "timing.py",
    "aggregation.py",
    "merging.py",
    "deltas.py",
    "codecs.py",
    "guards.py",
    "staleness.py",
    "programs.py",
    "trainer.py",
    "epochs.py",
    "computation.py",
    "experiment.py",
    "events.py",
    "ordering.py",
    "accounts.py",
    "lineage.py",
    "causality.py",
    "invariants.py",
    "provenance.py",
    "sim/order.py",
    "sim/schedule.py",
    "sim/world.py",
    "sim/traffic.py",
    "sim/virtual_worker.py",
    "sim/recorded.py",
    "sim/plan.py",
    "sim/packing.py",
    "runtime/protocol.py",
    "runtime/server_protocol.py",
    "runtime/peer_protocol.py",
    "runtime/versions.py",
    "runtime/intake.py",
    "runtime/admission.py",
    "runtime/ending.py",
    "runtime/standing.py",
    "runtime/ledger.py",
    "runtime/figures.py",
    "runtime/roster.py",
    "runtime/registration.py",
    "runtime/notices.py",
    "runtime/ports.py",
}
IO = {"time", "threading", "socket", "os", "pathlib", "zmq", "orbax", "subprocess"}

FILES = sorted(SOURCE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(name: str) -> str | None:
    """The part of the package that a module's name belongs to."""
    parts = name.split(".")
    known = {part for layer in LAYERS for part in layer}
    return (
        parts[1] if parts[0] == "asyn2f" and parts[1:2] and parts[1] in known else None
    )


def layer_of(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_point_downwards(path):
    own = path.relative_to(SOURCE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for name in imports_of(path):
        part = part_of(name)
        if part is not None and part != own:
            assert layer_of(part) <= layer_of(own), f"{own} imports {name}"
            assert (own, part) not in NEVER, f"{own} imports {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_to_one_place(library):
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    strangers = [
        user for user in users if not any(user.startswith(p) for p in ONLY_IN[library])
    ]
    assert not strangers


@pytest.mark.parametrize("name", sorted(PURE))
def test_what_does_no_io_cannot(name):
    roots = {found.split(".")[0] for found in imports_of(SOURCE / name)}
    assert not roots & IO


def test_nothing_is_unpickled_anywhere():
    for path in [*FILES, *(SOURCE.parent.parent / "launch").glob("*.py")]:
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}, path


def test_a_worker_loads_nothing_that_only_others_need():
    """Each of these is a part of a second of every worker's start."""
    needless = "orbax tensorstore tensorflow_datasets tensorboardX plotly sklearn"
    code = (
        "import sys, launch.worker\n"
        f"found = [name for name in {needless.split()!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE.parent.parent, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
