"""What all programs here have in common: flags, errors, and how a process is set up."""

import atexit
import hashlib
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
import jaxlib
from absl import app, flags
from ml_collections import config_flags

import asyn2f
from asyn2f import agreement, build, rules, trace, workdir
from asyn2f.caches import cache_folder
from asyn2f.causality import CausalityError
from asyn2f.lineage import Incomplete
from asyn2f.runtime.addresses import AddressError
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.keys import KeysError
from asyn2f.runtime.store import StoreError
from asyn2f.sim.plan import PlanError
from asyn2f.sim.recorded import OrderError
from asyn2f.sim.vectorised import TooLarge
from launch import config_file, processor
from launch.descriptors import DescriptorError
from launch.inputs import with_absolute_paths
from launch.output import OutputError, open_output

USAGE_ERROR = 2


class DeviceError(Exception):
    """JAX cannot use the devices that it was told to use."""


SPEAKING_ERRORS = (
    build.ConfigError,
    workdir.WorkdirError,
    StoreError,
    AddressError,
    KeysError,
    PlanError,
    TooLarge,
    OrderError,
    CausalityError,
    Incomplete,
    OutputError,
    DescriptorError,
    DeviceError,
)


# What was measured here to execute an experiment fastest.
TRIALS = cache_folder() / "trials.json"

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: a file like configs/digits.py, or FILE:ARGUMENT. Each of its keys "
    "is a flag as well: --config.workers=8.",
)
_NO_CONFIG = "--config must be given, for example --config=configs/digits.py"
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run to be made.")
RUN = flags.DEFINE_string("run", None, "The folder of a run that was made.")
flags.disclaim_key_flags()  # each program says which it takes


def takes(*names: str) -> None:
    """Lists flags of other modules in the help of the calling program."""
    for name in names:
        flags.declare_key_flag(name)


def run(main: Callable[[], int | None], *, outlives_output: bool = False) -> None:
    """Runs a program: errors that a user can mend are one line and exit code 2.

    Args:
      main: returns the exit code.
      outlives_output: what it leaves in files matters, so it goes on when its standard
        output cannot be written.
    """
    open_output(dispensable=outlives_output)
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & {*sys.argv[1:]}:
        print(_help())
        _leave(0)

    def parse(argv: list[str]) -> list[str]:
        rest: list[str] = flags.FLAGS(_read_config(argv))
        if len(rest) > 1:
            raise flags.Error(f"unknown argument {rest[1]!r}; flags begin with --")
        return rest

    def parse_or_fail(argv: list[str]) -> list[str]:
        try:
            return parse(argv)
        except (
            flags.Error,
            build.ConfigError,
            OSError,
            ValueError,
            TypeError,
        ) as error:
            fail(_first_line(error))

    def guarded(_: list[str]) -> None:
        for name in ("absl", "jax"):  # which accelerators JAX has not found, and such
            logging.getLogger(name).setLevel(logging.WARNING)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `launch`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _leave(main() or 0)
        except SPEAKING_ERRORS as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            _leave(USAGE_ERROR)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:  # `| head` has seen enough
            os._exit(128 + signal.SIGPIPE)

    app.run(guarded, flags_parser=parse_or_fail)


def _help() -> str:
    """What the program is for, and the flags that it takes."""
    lines = [str(sys.modules["__main__"].__doc__).strip(), "", "Flags:"]
    found = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    for flag in sorted(found, key=lambda flag: flag.name):
        value = "" if flag.boolean else "=..."
        lines.append(f"  --{flag.name}{value}")
        lines += textwrap.wrap(
            flag.help, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _read_config(argv: list[str]) -> list[str]:
    """The arguments without `--config`, whose file has been read: from now on the flag
    is what the file says, and each of its keys that is given is a flag as well."""
    rest: list[str] = []
    said: str | None = None
    arguments = iter(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
    for argument in arguments:
        key, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and key == "config":
            said = value if given else next(arguments, "")
        else:
            if argument.startswith("-") and key.startswith("config."):
                rules.check_key(key.removeprefix("config."))
            rest.append(argument)
    if said:
        config_flags.DEFINE_config_dict(
            "config", config_file.load(said), sys_argv=rest, allow_override=True
        )
    elif any(argument.lstrip("-").startswith("config.") for argument in rest):
        raise flags.Error(_NO_CONFIG)
    return rest


def _leave(code: int) -> NoReturn:
    """Ends the process when all that is registered for its end has run, and without
    taking it apart: to collect the objects of JAX and Plotly one by one takes seconds,
    on a busy machine half a minute."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OutputError as error:
        if not code:
            print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(code or USAGE_ERROR)
    os._exit(code)


def fail(message: str) -> NoReturn:
    """Says what is wrong and ends the process with exit code 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(USAGE_ERROR)


def _first_line(error: Exception) -> str:
    """What happened; of a config that could not be run, also why."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    why = lines[-1] if any(line.startswith("Traceback") for line in lines) else ""
    return f"{lines[0]} {why}".strip()


def plain(config: Any) -> build.Config:
    """The config as checked plain dicts, with absolute paths.

    Raises:
      build.ConfigError: see `build.check`.
    """
    if config is None:
        fail(_NO_CONFIG)
    found = rules.plain(config)
    build.check(found)
    return with_absolute_paths(found)


def required(flag: flags.FlagHolder[str | None]) -> str:
    """A flag's value, which must be given."""
    if not flag.value:
        fail(f"--{flag.name} must be given")
    return str(flag.value)


def run_folder() -> Path:
    """The folder of a run that is there, which was its `--workdir` when it was made."""
    if not RUN.value and WORKDIR.value:
        print("note: --workdir is called --run here", file=sys.stderr, flush=True)
        return Path(WORKDIR.value)
    return Path(required(RUN))


def prepare_jax() -> None:
    """The persistent compilation cache, for every program however small: a dozen
    processes compile the same, the first run pays, and the others read. Then JAX's
    devices, so that it is said early if there are none.

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
        why = f" ({_first_line(error)})" if str(error) else ""
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
    journal = Journal(trace.TraceWriter(folder / workdir.TRACE, actor))
    now, here = time.monotonic(), environment()
    journal.write(trace.Recorded(now, actor, run_id, incarnation, here, trace.FORMAT))
    return journal


def log_with_dates() -> None:
    """From now on what is logged goes to standard error, a line with date and time for
    each event; of libraries, warnings alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%F %T"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("asyn2f").setLevel(logging.INFO)


def stop_on_signals(stop: Callable[[str], None]) -> None:
    """SIGINT, SIGTERM and SIGHUP end the process in good order; the second one at
    once. Who ignores SIGHUP, as `nohup` does, goes on ignoring it."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        stop(signal.Signals(number).name)

    for number in stopping_signals():
        signal.signal(number, handle)


def stopping_signals() -> list[signal.Signals]:
    """The signals that are a wish to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
