"""This machine: JAX's devices and caches, cores, instruction sets, and the environment
that the last bits of a run depend on."""

import hashlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib

import asyn2f
from asyn2f import rundir, trace
from asyn2f.errors import DeviceError
from asyn2f.runtime.io_thread import Journal
from asyn2f.tasks.cache import cache_folder
from asyn2f.training import agreement

# By XLA's names, each with the flags of /proc/cpuinfo that it adds. Under another set,
# sums and products are rounded differently.
_INSTRUCTION_SETS = {
    "SSE4_2": {"sse4_2"},
    "AVX": {"avx"},
    "AVX2": {"avx2", "fma"},
    "AVX512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "AVX512_VNNI": {"avx512_vnni"},
    "AVX512_BF16": {"avx512_bf16"},
    "AMX": {"amx_tile", "amx_int8", "amx_bf16"},
    "AMX_FP16": {"amx_fp16"},
}
_MAX_ISA = "--xla_cpu_max_isa="


def prepare_jax() -> None:
    """Sets up JAX's persistent compilation cache and its devices.

    Every program is cached, however small: a dozen processes compile the same ones, so
    the first run compiles and the others read.

    Raises:
      DeviceError: JAX_PLATFORMS names a platform that is not available.
    """
    default = str(cache_folder() / "jax")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    try:
        jax.devices()
    except Exception as error:  # of several classes, one of them AssertionError
        wanted = jax.config.values["jax_platforms"]
        why = f" ({str(error).strip().splitlines()[0]})" if str(error) else ""
        raise DeviceError(
            f"JAX_PLATFORMS: found {wanted!r}, and JAX has no such device here{why}; "
            "unset it, or install JAX's support for that device"
        ) from None


def use_cores_as_devices() -> None:
    """Makes each core one of JAX's CPU devices, over which lanes are sharded: two
    devices of one thread are faster than one device of two. To be called before
    anything is computed; has no effect on accelerators."""
    jax.config.update("jax_num_cpu_devices", len(usable_cores()))


def usable_cores() -> list[int]:
    """The cores in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS has no affinity


def threads() -> int:
    """The number of threads of XLA's CPU backend. Some of its sums are split by it, so
    the last bits of large matrix products and convolutions depend on it."""
    found = os.environ.get("PJRT_NPROC", "")
    return int(found) if found.isdigit() else len(usable_cores())


def source_digest(leave_out: tuple[str, ...] = ()) -> str:
    """A digest of the package's sources, except for the subpackages `leave_out`: one
    version number stands for many states of them."""
    folder = Path(asyn2f.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] in leave_out:
            continue
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """The environment that this process's numbers may depend on, for its trace."""
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
        "instruction_set": instruction_set(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "x64": bool(jax.config.read("jax_enable_x64")),
        **agreement.flags(agreement.REPLAYED),
    }


def open_journal(folder: Path, actor: str, run_id: str, incarnation: int) -> Journal:
    """Opens this process's trace and writes its `ProcessStarted` event."""
    journal = Journal(trace.TraceWriter(folder / rundir.TRACE, actor))
    now, here = time.monotonic(), environment()
    journal.write(
        trace.ProcessStarted(now, actor, run_id, incarnation, here, trace.FORMAT)
    )
    return journal


# ---------------------------------------------------------------- instruction sets


def instruction_set() -> str:
    """The largest instruction set that XLA compiles for in this process.

    On processors other than x86, or without /proc/cpuinfo, the kind of machine.
    """
    return largest_set(_processor_flags(), os.environ.get("XLA_FLAGS", ""))


def largest_set(processor_flags: frozenset[str], xla_flags: str) -> str:
    """The largest set of a processor, as far as XLA is allowed to use it.

    >>> largest_set(frozenset({"sse4_2", "avx", "avx2", "fma"}), "")
    'AVX2'
    >>> largest_set(frozenset({"sse4_2", "avx"}), "--xla_cpu_max_isa=sse4_2")
    'SSE4_2'
    """
    limits = [flag for flag in xla_flags.split() if flag.startswith(_MAX_ISA)]
    limit = limits[-1].removeprefix(_MAX_ISA).upper() if limits else ""
    found = platform.machine()
    for name, needed in _INSTRUCTION_SETS.items():
        if not needed <= processor_flags:
            break
        found = name
        if name == limit:
            break
    return found


def limit_instructions(name: str) -> None:
    """Has XLA compile for at most this set. To be called before anything is computed;
    a set that XLA has no name for changes nothing."""
    if name in _INSTRUCTION_SETS and name != instruction_set():
        flags = os.environ.get("XLA_FLAGS", "").split()
        others = [flag for flag in flags if not flag.startswith(_MAX_ISA)]
        os.environ["XLA_FLAGS"] = " ".join([*others, _MAX_ISA + name])


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    found = (values for name, _, values in lines if name.strip() == "flags")
    return frozenset(next(found, "").split())
