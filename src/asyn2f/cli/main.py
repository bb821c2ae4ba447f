"""The console command `asyn2f`: one program per subcommand.

asyn2f run --config=digits --workdir=runs/digits
asyn2f simulate --help
"""

import atexit
import importlib
import os
import signal
import sys
from typing import NamedTuple

from asyn2f.errors import OutputError


class Command(NamedTuple):
    """A subcommand."""

    program: str  # MODULE:FUNCTION, in `asyn2f.cli`; returns the exit code
    summary: str
    flags: str  # the names of those it takes
    outlives_output: bool = False  # continues when standard output cannot be written
    argument: str = ""  # the key of the config that it takes without a flag


_PEER = "config workdir insecure server"
COMMANDS = {
    "run": Command(
        "local:main",
        "run server, workers and evaluator on this machine",
        "config workdir insecure resume overwrite start_workers data",
        outlives_output=True,
    ),
    "server": Command(
        "server:main",
        "run the server of a run",
        "config workdir insecure resume overwrite",
        outlives_output=True,
    ),
    "worker": Command(
        "peers:worker",
        "run one worker, on this or another machine",
        f"{_PEER} worker data",
        outlives_output=True,
    ),
    "evaluator": Command(
        "peers:evaluator", "run the evaluator of a run", _PEER, outlives_output=True
    ),
    "simulate": Command(
        "simulate:main",
        "run under a virtual clock, in one process",
        "config workdir resume overwrite keep_every_s data",
        outlives_output=True,
    ),
    "replay": Command(
        "replay:main",
        "execute the trace of a run again",
        "run config executor tolerance explain data",
    ),
    "verify": Command("tools:verify", "check the guarantees of a run", "run deep"),
    "compare": Command(
        "compare:main",
        "compare methods at equal virtual time",
        "config workdir strategies seeds trials grids choice_seeds target jobs data",
        outlives_output=True,
    ),
    "report": Command("tools:report", "write the report of a run", "run"),
    "keys": Command(
        "tools:keys", "make the keys of a server and its peers", "folder workers add"
    ),
    "quality": Command(
        "tools:quality", "score the data of each worker", "config max_examples data"
    ),
    "check-strategy": Command(
        "tools:check_strategy",
        "check the contract of a strategy of your own",
        "config",
        argument="strategy.name",
    ),
    "collect": Command(
        "tools:collect", "collect the traces of other machines", "run from"
    ),
}


def main() -> None:
    """Runs the subcommand that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_usage())
        return
    if name not in COMMANDS:
        allowed = ", ".join(COMMANDS)
        print(f"error: unknown command {name!r}; allowed: {allowed}", file=sys.stderr)
        sys.exit(2)
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    start(name)


def start(name: str) -> None:
    """Runs a subcommand with the flags in `sys.argv`; does not return."""
    last = Exit()
    # During imports nothing can be lost yet, and Ctrl-C ends the process without a
    # traceback. `app.run` restores Python's own handler.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = importlib.import_module("asyn2f.cli.process")
    process.open_missing_streams()
    if name == "run":
        process.start_fork_server()  # takes as long as the imports below
    app = importlib.import_module("asyn2f.cli.app")
    module, function = COMMANDS[name].program.split(":")
    program = importlib.import_module(f"asyn2f.cli.{module}")
    app.run(name, getattr(program, function), last)


class Exit:
    """Ends the process as soon as all other exit handlers have run.

    Freeing the objects of JAX and Plotly one by one takes seconds, on a busy machine
    half a minute. Handlers run in reverse order of registration, so this one has to be
    registered before any import registers another.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # None = let the interpreter end as usual
        atexit.register(self._end)

    def _end(self) -> None:
        if self.code is None:
            return
        try:
            sys.stdout.flush()
        except OutputError as error:
            if not self.code:
                print(f"error: {error}", file=sys.stderr, flush=True)
                self.code = 2
        except BrokenPipeError:  # `| head` has ended
            self.code = self.code or 128 + signal.SIGPIPE
        os._exit(self.code)


def _usage() -> str:
    lines = [
        "asyn2f: asynchronous federated learning with bidirectional aggregation.",
        "",
        "  asyn2f run --workdir=runs/digits",
        "",
        "Usage: asyn2f COMMAND [--flag=value ...]; asyn2f COMMAND --help",
        "",
    ]
    lines += [f"  {name:14} {each.summary}" for name, each in COMMANDS.items()]
    return "\n".join(lines)
