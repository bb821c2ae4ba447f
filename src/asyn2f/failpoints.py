"""Failpoints: named places at which a server can be made to crash, so that tests can
exercise crash recovery on real processes.

    ASYN2F_DIE_AT=announced:3 asyn2f server ...

kills the process, as a power failure would, when it reaches that point the third time.
"""

import os
import signal
from collections import Counter

from asyn2f.errors import ConfigError

VARIABLE = "ASYN2F_DIE_AT"

POINTS = {
    "begun": "its incarnation has begun, and nothing else has happened",
    "received": "an update is in memory, and has not been acknowledged",
    "checked": "an update has been decoded, and the protocol does not know yet",
    "made": "a version is computed, and exists in this process only",
    "saving": "the store is about to write a version",
    "ahead": "a version has a write-ahead file, and no Orbax checkpoint",
    "written": "a version has been renamed; the folder is not flushed",
    "saved": "a version is durable, and nobody has been notified",
    "announcing": "a version is about to be published",
    "announced": "a version has been published, and no outcome has been sent",
    "answering": "an update is committed, and its worker has not been notified",
    "best": "a version is the best, and the store does not know yet",
    "cleaning": "an old version has lost its name; a checkpoint's files remain",
    "ending": "the run is over, and its summary is not written",
}

_wanted, _, _times = os.environ.get(VARIABLE, "").partition(":")
_reached: Counter[str] = Counter()


def check() -> None:
    """Raises ConfigError unless the environment names a failpoint, or none."""
    if _wanted and _wanted not in POINTS:
        raise ConfigError(
            f"{VARIABLE}: found {_wanted!r}, allowed: {', '.join(POINTS)}"
        )
    if _times and not (_times.isdecimal() and int(_times) > 0):
        raise ConfigError(
            f"{VARIABLE}: found {_times!r} after the colon, allowed: 1, 2, ..."
        )


def reach(point: str) -> None:
    """Kills this process if the environment asks for it at this point."""
    if point != _wanted:
        return
    _reached[point] += 1
    if _reached[point] == int(_times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
