"""Brings the traces of processes on other machines into the folder of their run.

    python -m launch.collect --run=runs/demo --from=copied/a --from=copied/b

A worker writes its trace into its own --workdir, on its machine. Copy those folders to
the server's machine and collect them; launch.verify, launch.replay
and launch.report then see the whole run. To collect again changes nothing. Exit code 0:
every process's trace is there; 1: some are missing still; 2: a folder cannot be read.
"""

from pathlib import Path

from absl import flags

from asyn2f import trace
from asyn2f.cli import app
from asyn2f.trace import history
from asyn2f.trace.collection import collect

app.takes("run")
_FROM = flags.DEFINE_multi_string(
    "from", [], "A folder of another process's trace; may be given several times."
)


def main() -> int:
    folder = app.run_folder()
    if not _FROM.value:
        app.fail("--from must be given: the --workdir of a worker, copied here")
    try:
        for found in collect(folder, [Path(source) for source in _FROM.value]):
            if found.target is None:
                others = ", ".join(found.others) or "none: no server let it in"
                print(f"{found.source}: nothing of this run; its run is {others}")
            else:
                print(
                    f"{found.source}: {found.events:,} events of {found.lives} "
                    f"processes, in {found.target}"
                )
        absence = history.absence_of(history.absent(trace.of_run(folder)))
    except (ValueError, OSError) as error:
        app.fail(str(error))
    print(absence or "the trace of every process is here")
    return 1 if absence else 0
