"""What all programs share: flags and config, errors, signals, and the end."""

import inspect
import logging
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import app, flags
from ml_collections import config_flags

from asyn2f.cli.arguments import (
    NAMING,
    FloatOrNone,
    Integer,
    config_of,
    given_of,
)
from asyn2f.cli.main import COMMANDS, Exit
from asyn2f.cli.process import open_output
from asyn2f.config import build, reference, schema
from asyn2f.config.default import for_flags
from asyn2f.config.private import NO_ROOTS, Roots, roots_of
from asyn2f.errors import Asyn2fError, ExecutionError
from asyn2f.transport.base import check_safe, is_exposed

USAGE_ERROR = 2
_SHOW = "ASYN2F_TRACEBACK"
_NO_CONFIG = "--config must be given, for example --config=digits"

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "The experiment: a Python file with a function get_config, or FILE:ARGUMENT; or a "
    "packaged one, digits or default; or of_run:FOLDER, that of a run. Each key is a "
    "flag as well: --config.workers=8. Unless given: the run's own, with --resume or "
    "--run; or else digits, or default with a task.factory, except for programs that "
    "join others.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run to be made.")
RUN = flags.DEFINE_string("run", None, "The folder of a run that was made.")
RESUME = flags.DEFINE_bool("resume", False, "Continue the run in --workdir.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the run in --workdir first.")
SERVER = flags.DEFINE_string("server", None, "The server's address, tcp://host:port.")
INSECURE = flags.DEFINE_bool(
    "insecure", False, "Without keys, allow addresses that other machines can reach."
)
DATA = flags.DEFINE_string(
    "data",
    None,
    "Where each worker's own data are, for a task.factory with the arguments worker "
    "and data: the PATH of one worker's; or 0:PATH,1:PATH,...; or a path with {worker} "
    "in it.",
)


class Request(NamedTuple):
    """The run that a program is asked for."""

    config: build.Config  # checked
    folder: Path
    resume: bool = False
    overwrite: bool = False
    insecure: bool = False
    data: Roots = NO_ROOTS  # of the workers that are here


def request() -> Request:
    """The run that the flags ask for."""
    folder = Path(required(WORKDIR))
    return Request(
        config=checked(CONFIG.value),
        folder=folder,
        resume=RESUME.value,
        overwrite=OVERWRITE.value,
        insecure=INSECURE.value,
        data=roots(),
    )


def roots() -> Roots:
    """Where the workers' own data are, by the flag."""
    return roots_of(DATA.value)


# ---------------------------------------------------------------- running a program


def run(name: str, program: Callable[[], int], last: Exit) -> None:
    """Runs a subcommand: an error that a user can fix is one line and exit code 2.

    Args:
      name: of the subcommand.
      program: returns the exit code; its docstring, or that of its module, begins the
        help.
      last: ends the process.
    """
    command = COMMANDS[name]
    open_output(dispensable=command.outlives_output)
    if {"--help", "-h", "-help", "--helpshort", "--helpfull"} & {*sys.argv[1:]}:
        try:
            print(_help(program, name, "--helpfull" in sys.argv), flush=True)
        except BrokenPipeError:  # `| head` has ended
            last.code = 128 + signal.SIGPIPE
        last.code = last.code or 0
        sys.exit()

    def parse(argv: list[str]) -> list[str]:
        try:
            rest: list[str] = flags.FLAGS(_read_config(name, argv))
            if len(rest) > 1:
                raise flags.Error(f"unknown argument {rest[1]!r}; flags begin with --")
            _check_taken(name, command.flags.split())
            return rest
        except (flags.Error, Asyn2fError, OSError, ValueError, TypeError) as error:
            fail(_first_line(error))

    def guarded(_: list[str]) -> None:
        log_once()
        for library in ("absl", "jax"):  # such as which accelerators JAX did not find
            logging.getLogger(library).setLevel(logging.WARNING)
        if not os.environ.get(_SHOW):  # the traceback of a callback, which is logged
            logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `asyn2f.cli.main`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            last.code = program() or 0
        except ExecutionError as error:  # in the code of a task or a strategy
            if os.environ.get(_SHOW):
                traceback.print_exception(error.__cause__)
            more = f" ({_SHOW}=1 prints the traceback)"
            print(f"error: {error}{more}", file=sys.stderr, flush=True)
            last.code = 1
        except Asyn2fError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            last.code = USAGE_ERROR
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:  # `| head` has ended
            os._exit(128 + signal.SIGPIPE)
        except SystemExit as ended:
            last.code = ended.code if isinstance(ended.code, int) else None
            raise

    app.run(guarded, flags_parser=parse)


def _help(program: Callable[[], int], name: str, is_full: bool) -> str:
    """What the program does, and the flags that it takes; in full, also the keys of its
    config."""
    taken = COMMANDS[name].flags.split()
    text = inspect.getdoc(program) or inspect.getdoc(inspect.getmodule(program)) or ""
    lines = [text, "", "Flags:"]
    for flag in [flags.FLAGS[each] for each in sorted(taken)]:
        lines.append(f"  --{flag.name}{'' if flag.boolean else '=...'}")
        indent = " " * 6
        lines += textwrap.wrap(
            flag.help, 80, initial_indent=indent, subsequent_indent=indent
        )
    if "config" in taken:
        more = "--helpfull lists the keys of --config with default, unit and range."
        lines += ["", _keys_help(name) if is_full else more]
    return "\n".join(lines)


def _keys_help(name: str) -> str:
    """The keys of the config that the arguments name, those of its functions too."""
    try:
        _, given = given_of(name, sys.argv)
        config = None
        if given.keys() & {"config", *NAMING}:
            config = config_of(name, given)
        return reference.flags_help(None if config is None else schema.plain(config))
    except (Asyn2fError, OSError, ValueError) as error:
        fail(_first_line(error))


def _check_taken(name: str, taken: list[str]) -> None:
    """Raises flags.Error if a flag of another subcommand was given."""
    if "run" in taken:
        taken = [*taken, "workdir"]  # see `run_folder`
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        for flag in found if module.startswith("asyn2f.") else ():
            if flag.present and flag.name not in taken:
                raise flags.Error(
                    f"unknown flag --{flag.name}; see asyn2f {name} --help"
                )


def _read_config(name: str, argv: list[str]) -> list[str]:
    """Defines the flag --config as the config that the arguments name, so that each of
    its keys is a flag; returns the other arguments."""
    rest, given = given_of(name, argv)
    if "config" in COMMANDS[name].flags.split():
        config = config_of(name, given)
        if config is not None:
            config_flags.register_flag_parser_for_type(float, FloatOrNone())
            config_flags.register_flag_parser_for_type(int, Integer())
            config_flags.DEFINE_config_dict(
                "config", for_flags(config), sys_argv=rest, allow_override=True
            )
        elif any(key.startswith("config.") for key in given):
            raise flags.Error(_NO_CONFIG)
    return rest


# ---------------------------------------------------------------- flags and config


def fail(message: str) -> NoReturn:
    """Prints an error and ends the process with exit code 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(USAGE_ERROR)


def _first_line(error: Exception) -> str:
    """The first line of a message; of a config file's traceback also the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    why = lines[-1] if any(line.startswith("Traceback") for line in lines) else ""
    return f"{lines[0]} {why}".strip()


def checked(config: Any) -> build.Config:
    """The config as plain dicts, checked, with absolute paths.

    Raises:
      errors.ConfigError: see `build.check`.
    """
    if config is None:
        fail(_NO_CONFIG)
    found = schema.plain(config)
    build.check(found)
    return schema.with_absolute_paths(found)


def required(flag: flags.FlagHolder[str | None]) -> str:
    """A flag's value, which must be given."""
    if not flag.value:
        fail(f"--{flag.name} must be given")
    return str(flag.value)


def run_folder() -> Path:
    """The folder of an existing run; --workdir, its name when it was made, is accepted
    in place of --run."""
    if not RUN.value and WORKDIR.value:
        print("note: --workdir is called --run here", file=sys.stderr, flush=True)
        return Path(WORKDIR.value)
    return Path(required(RUN))


def check_address(address: str, has_keys: bool, insecure: bool) -> None:
    """Prints a warning about an exposed address without keys.

    Raises:
      AddressError: it requires keys.
    """
    check_safe(address, has_keys, insecure)
    if is_exposed(address) and not has_keys:
        print(
            f"warning: insecure: everyone who reaches {address} can read models and "
            "join",
            file=sys.stderr,
            flush=True,
        )


# ---------------------------------------------------------------- logs


def log_once() -> None:
    """Leaves the log to absl: a handler that an import has added would write each line
    a second time."""
    root = logging.getLogger()
    for handler in [x for x in root.handlers if type(x) is logging.StreamHandler]:
        root.removeHandler(handler)


def log_with_dates() -> None:
    """Logs to standard error, each line with date and time; of libraries, warnings
    only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%F %T"))
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger("asyn2f").setLevel(logging.INFO)
