"""The console command `asyn2f`: one program per subcommand.

asyn2f run --config=configs/digits.py --workdir=runs/digits
asyn2f simulate --help
"""

import importlib
import signal
import sys
from typing import NamedTuple

from asyn2f.cli import output, preloading


class _Command(NamedTuple):
    module: str
    summary: str
    outlives_output: bool = False  # see `app.run`


_COMMANDS = {
    "run": _Command("local", "run server, workers and evaluator here", True),
    "server": _Command("server", "run the server of a run", True),
    "worker": _Command("worker", "run one worker, on this or another machine", True),
    "evaluator": _Command("evaluator", "run the evaluator of a run", True),
    "simulate": _Command("simulate", "run under a virtual clock", True),
    "replay": _Command("replay", "execute the trace of a run again", False),
    "verify": _Command("verify", "check the guarantees of a run", False),
    "compare": _Command("compare", "compare methods fairly", True),
    "report": _Command("report", "write the report of a run", False),
    "keys": _Command("keys", "make the keys of a server and its peers", False),
    "quality": _Command("quality", "score the data of each worker", False),
    "collect": _Command("collect", "bring traces of other machines together", False),
}


def main() -> None:
    """Runs the subcommand that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_usage())
        return
    if name not in _COMMANDS:
        allowed = ", ".join(_COMMANDS)
        sys.exit(f"error: unknown command {name!r}; allowed: {allowed}")
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]
    start(name)


def start(name: str) -> None:
    """Runs a subcommand with the flags in `sys.argv`; does not return."""
    command = _COMMANDS[name]
    # During imports nothing can be lost yet, and Ctrl-C ends the process without a
    # traceback. `app.run` restores Python's own handler.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    output.open_missing_streams()
    if name == "run":
        preloading.begin()  # takes as long as the imports below
    app = importlib.import_module("asyn2f.cli.app")
    program = importlib.import_module(f"asyn2f.cli.{command.module}")
    app.run(program, outlives_output=command.outlives_output)


def _usage() -> str:
    lines = [
        "asyn2f: asynchronous federated learning with bidirectional aggregation.",
        "",
    ]
    lines += ["usage: asyn2f COMMAND [flags]; asyn2f COMMAND --help", ""]
    lines += [f"  {name:10} {each.summary}" for name, each in _COMMANDS.items()]
    return "\n".join(lines)
