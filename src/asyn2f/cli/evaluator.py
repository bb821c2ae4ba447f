"""The evaluator of a run, on this or another machine.

    python -m launch.evaluator --config=configs/digits.py --workdir=runs/digits \\
        --server=tcp://127.0.0.1:5570

See `launch.worker` for the flags.
"""

from pathlib import Path

from asyn2f.cli import app, peers
from asyn2f.runtime.evaluator import Evaluator

app.takes("config", "workdir", "insecure", "server")


def main() -> int:
    folder = Path(app.required(app.WORKDIR))
    config = app.plain(app.CONFIG.value)
    return peers.main(Evaluator, "evaluator", config, folder, app.SERVER)
