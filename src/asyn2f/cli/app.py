"""What all programs here have in common: flags, errors, and how a process is set up."""

import atexit
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from asyn2f import errors
from asyn2f.cli.inputs import with_absolute_paths
from asyn2f.cli.output import (
    open_output,
)
from asyn2f.config import build, config_file, schema
from asyn2f.errors import (
    Asyn2fError,
    OutputError,
)

USAGE_ERROR = 2


CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: a file like configs/digits.py, or FILE:ARGUMENT. Each of its keys "
    "is a flag as well: --config.workers=8.",
)
_NO_CONFIG = "--config must be given, for example --config=configs/digits.py"
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run to be made.")
RUN = flags.DEFINE_string("run", None, "The folder of a run that was made.")
RESUME = flags.DEFINE_bool("resume", False, "Continue the run in --workdir.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the run in --workdir first.")
SERVER = flags.DEFINE_string("server", None, "The server's address, tcp://host:port.")
flags.disclaim_key_flags()  # each program says which it takes


def takes(*names: str) -> None:
    """Lists flags of other modules in the help of the calling program."""
    for name in names:
        flags.declare_key_flag(name)


def run(program: ModuleType, *, outlives_output: bool = False) -> None:
    """Runs a program: errors that a user can mend are one line and exit code 2.

    Args:
      program: its `main` returns the exit code; its docstring begins the help.
      outlives_output: the files it leaves matter, so it continues when its standard
        output cannot be written.
    """
    main: Callable[[], int | None] = program.main
    if hasattr(program, "prepare_arguments"):
        sys.argv = program.prepare_arguments(sys.argv)
    open_output(dispensable=outlives_output)
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & {*sys.argv[1:]}:
        print(_help(program))
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
            errors.ConfigError,
            OSError,
            ValueError,
            TypeError,
        ) as error:
            fail(_first_line(error))

    def guarded(_: list[str]) -> None:
        log_once()
        for name in ("absl", "jax"):  # which accelerators JAX has not found, and such
            logging.getLogger(name).setLevel(logging.WARNING)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `asyn2f.cli.main`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _leave(main() or 0)
        except Asyn2fError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            _leave(USAGE_ERROR)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:  # `| head` has seen enough
            os._exit(128 + signal.SIGPIPE)

    app.run(guarded, flags_parser=parse_or_fail)


def _help(program: ModuleType) -> str:
    """What the program is for, and the flags that it takes."""
    lines = [str(program.__doc__).strip(), "", "Flags:"]
    found = flags.FLAGS.get_key_flags_for_module(program.__name__)
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
                schema.check_key(key.removeprefix("config."))
            rest.append(argument)
    if said:
        config_flags.DEFINE_config_dict(
            "config", config_file.load(said), sys_argv=rest, allow_override=True
        )
    elif any(argument.lstrip("-").startswith("config.") for argument in rest):
        raise flags.Error(_NO_CONFIG)
    return rest


def log_once() -> None:
    """Leaves the log to absl: with the handler that an import may have added, each line
    would be written twice."""
    root = logging.getLogger()
    for handler in [x for x in root.handlers if type(x) is logging.StreamHandler]:
        root.removeHandler(handler)


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
      errors.ConfigError: see `build.check`.
    """
    if config is None:
        fail(_NO_CONFIG)
    found = schema.plain(config)
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
