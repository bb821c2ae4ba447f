"""This machine and this process: JAX's devices and caches, cores, and what of them the
numbers depend on."""

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib

import asyn2f
from asyn2f import rundir, trace
from asyn2f.cli import processor
from asyn2f.errors import DeviceError
from asyn2f.runtime.io_thread import Journal
from asyn2f.tasks.cache import (
    cache_folder,
)
from asyn2f.training import agreement

# What was measured here to execute an experiment fastest.
TRIALS = cache_folder() / "trials.json"


def prepare_jax() -> None:
    """The persistent compilation cache, for every program however small: a dozen
    processes compile the same, the first run pays, and the others read. Then JAX's
    devices, so that a missing device is reported early.

    Raises:
      DeviceError: JAX_PLATFORMS names one that is not here.
    """
    default = str(cache_folder() / "jax")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        jax.devices()
    except Exception as error:  # of several kinds, one of them an assertion
        wanted = jax.config.values["jax_platforms"]
        why = f" ({str(error).strip().splitlines()[0]})" if str(error) else ""
        raise DeviceError(
            f"JAX_PLATFORMS: found {wanted!r}, and JAX has no such device here{why}; "
            "unset it, or install what JAX needs for that device"
        ) from None


def use_cores_as_devices() -> None:
    """On a CPU, one of JAX's devices for each core: lanes are laid over devices, and
    two devices of one thread do more than one device of two. To be called before
    anything is computed; elsewhere it changes nothing."""
    jax.config.update("jax_num_cpu_devices", len(usable_cores()))


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # where there is no affinity: macOS


def threads() -> int:
    """How many threads XLA computes with on a CPU: some of its sums are cut by their
    number, so the last bits of large matrix products and convolutions depend on it."""
    found = os.environ.get("PJRT_NPROC", "")
    return int(found) if found.isdigit() else len(usable_cores())


def source_digest(leave_out: tuple[str, ...] = ()) -> str:
    """Names the state of the package's sources, but for some of its folders: a version
    number stands for many."""
    folder = Path(asyn2f.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] in leave_out:
            continue
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """What the numbers of this process may depend on, for the head of its trace."""
    device = jax.devices()[0]
    return {
        "asyn2f": asyn2f.__version__,
        "source": source_digest(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": sys.version.split()[0],
        "platform": device.platform,
        "device": device.device_kind,
        "cores": len(usable_cores()),
        "threads": threads(),
        "steps_per_call": 1,
        "dtype": "float32",
        "instruction_set": processor.instruction_set(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "x64": bool(jax.config.read("jax_enable_x64")),
        **agreement.flags(agreement.REPLAYED),
    }


def open_journal(folder: Path, actor: str, run_id: str, incarnation: int) -> Journal:
    """This process's trace, with its head written."""
    journal = Journal(trace.TraceWriter(folder / rundir.TRACE, actor))
    now, here = time.monotonic(), environment()
    journal.write(
        trace.ProcessStarted(now, actor, run_id, incarnation, here, trace.FORMAT)
    )
    return journal
