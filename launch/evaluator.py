"""The evaluator of a run, on this or another machine.

    python -m launch.evaluator --config=configs/digits.py --workdir=runs/digits \\
        --server=tcp://127.0.0.1:5570

See `launch.worker` for the flags.
"""

from pathlib import Path

from absl import flags

from asyn2f.runtime.evaluator import Evaluator
from launch import peer, program

program.takes("config", "workdir", "insecure")
_SERVER = flags.DEFINE_string("server", None, "The server's address, tcp://host:port.")


def main() -> int:
    folder = Path(program.required(program.WORKDIR))
    config = program.plain(program.CONFIG.value)
    return peer.main(Evaluator, "evaluator", config, folder, _SERVER)


if __name__ == "__main__":
    program.run(main, outlives_output=True)
