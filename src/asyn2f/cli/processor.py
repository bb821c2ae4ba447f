"""What XLA compiles for: under another set of instructions, sums and products are
rounded otherwise."""

import os
import platform
from pathlib import Path

# As XLA names them, each with the flags of /proc/cpuinfo that it adds.
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
_FLAG = "--xla_cpu_max_isa="


def instruction_set() -> str:
    """The largest set that XLA compiles for in this process; on other processors than
    x86, or where nobody can tell, the kind of machine."""
    return largest_set(_processor_flags(), os.environ.get("XLA_FLAGS", ""))


def largest_set(processor_flags: frozenset[str], xla_flags: str) -> str:
    """The largest set of a processor, as far as XLA is allowed to use it.

    >>> largest_set(frozenset({"sse4_2", "avx", "avx2", "fma"}), "")
    'AVX2'
    >>> largest_set(frozenset({"sse4_2", "avx"}), "--xla_cpu_max_isa=sse4_2")
    'SSE4_2'
    """
    limits = [flag for flag in xla_flags.split() if flag.startswith(_FLAG)]
    limit = limits[-1].removeprefix(_FLAG).upper() if limits else ""
    found = platform.machine()
    for name, needed in _INSTRUCTION_SETS.items():
        if not needed <= processor_flags:
            break
        found = name
        if name == limit:
            break
    return found


def limit_instructions(name: str) -> None:
    """Has XLA compile for no more than this set. To be called before anything is
    computed; a set that XLA has no name for changes nothing."""
    if name in _INSTRUCTION_SETS and name != instruction_set():
        flags = os.environ.get("XLA_FLAGS", "").split()
        others = [flag for flag in flags if not flag.startswith(_FLAG)]
        os.environ["XLA_FLAGS"] = " ".join([*others, _FLAG + name])


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    found = (values for name, _, values in lines if name.strip() == "flags")
    return frozenset(next(found, "").split())
