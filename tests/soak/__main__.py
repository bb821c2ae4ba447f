"""Faults that take minutes or hours, each by name:

    python -m tests.soak joins [--count=1000]
    python -m tests.soak restart [--count=200]
    python -m tests.soak takeover [--seconds=30]
    python -m tests.soak memory [--times=10]
    python -m tests.soak monkey [--minutes=30]
    python -m tests.soak soak [--minutes=480]

prints its seed and one line of JSON: [measured, at most] of each figure, PASS or FAIL.
Exit code 0: PASS. What runs leave behind stays in --folder, or in one under /tmp.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.soak import monkey, peers, programs, soak
from tests.soak.figures import line_of

FAULTS = {
    "joins": lambda given: peers.joins(given.folder, given.count or 1000),
    "restart": lambda given: peers.restart(given.folder, given.count or 200, 5.0),
    "takeover": lambda given: programs.takeover(
        given.folder, given.seed, given.seconds
    ),
    "memory": lambda given: programs.memory(given.folder, given.seed, given.times),
    "monkey": lambda given: monkey.monkey(
        given.folder, given.seed, given.minutes or 30.0
    ),
    "soak": lambda given: soak.soak(given.folder, given.seed, given.minutes or 480.0),
}


def main() -> int:
    """Reads the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(FAULTS))
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn")
    parser.add_argument("--folder", type=Path, help="where the runs go")
    parser.add_argument("--count", type=int, help="peers: joins, restart")
    parser.add_argument("--seconds", type=float, default=30.0, help="takeover: stopped")
    parser.add_argument("--times", type=int, default=10, help="memory: servers killed")
    parser.add_argument("--minutes", type=float, help="monkey, soak: how long")
    given = parser.parse_args()
    given.folder = given.folder or Path(tempfile.mkdtemp(prefix=f"{given.name}-"))
    given.folder.mkdir(parents=True, exist_ok=True)
    print(f"{given.name}: seed {given.seed}, {given.folder}", flush=True)
    line = line_of(given.name, given.seed, FAULTS[given.name](given))
    print(line, flush=True)
    return int('"FAIL"' in line)


if __name__ == "__main__":
    sys.exit(main())
