"""One worker of a run, on this or another machine.

    python -m launch.worker --config=configs/digits.py --workdir=runs/digits \\
        --worker=3 --server=tcp://127.0.0.1:5570

The config must be the server's. Without --server, the address is looked up in
--workdir, where a server on the same file system has left it. The worker's trace goes
to --workdir.
"""

from pathlib import Path

from absl import flags

from asyn2f import errors
from asyn2f.cli import app, peers

app.takes("config", "workdir", "insecure", "server")
_WORKER = flags.DEFINE_integer("worker", None, "Which worker: the number of its shard.")


def main() -> int:
    folder, worker = Path(app.required(app.WORKDIR)), _WORKER.value
    config = app.plain(app.CONFIG.value)
    if worker is None or not 0 <= worker < config["workers"]:
        raise errors.ConfigError(
            f"--worker: found {worker}, allowed: 0 to {config['workers'] - 1}; "
            "config.workers says into how many shards the data is cut"
        )
    return peers.main(
        peers.make_worker(worker), f"worker-{worker}", config, folder, app.SERVER
    )
