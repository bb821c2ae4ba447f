"""Settings that hold for every test."""

import os

# One warm cache for all tests and the processes they start; see launch.program.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/asyn2f/jax-tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

import gc
import signal

import hypothesis
import pytest

from asyn2f.runtime.peer import zero_params  # noqa: F401  (JAX reads the above first)

# What JAX keeps of hundreds of programs is looked through at each full collection.
gc.set_threshold(50_000, 20, 50)

# `make test &` in a script has it ignored, and so would what the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("asyn2f", deadline=None, print_blob=True)
hypothesis.settings.load_profile("asyn2f")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts programs comes first: it takes longest, and mostly waits."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture
def patient_stores(monkeypatch):
    """A conversion that is slow, as on a busy machine, does not count as hanging; a
    test that makes one hang sets its own limit."""
    from asyn2f.store import orbax
    from tests.support.patience import PATIENCE_S

    monkeypatch.setattr(orbax, "_HANGS_S", PATIENCE_S)


def pytest_report_header(config: pytest.Config) -> str:
    import jax

    return f"jax {jax.__version__} on {jax.default_backend()}"
