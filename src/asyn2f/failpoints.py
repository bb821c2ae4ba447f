"""Failpoints: named places at which a server can be made to crash, for tests.

    ASYN2F_DIE_AT=announced:3 asyn2f server ...

kills the process, as a power cut would, when it reaches that place for the third time.
"""

import os
import signal
import sys
from collections import Counter

VARIABLE = "ASYN2F_DIE_AT"

POINTS = {
    "begun": "the incarnation has started, and nothing else has happened",
    "received": "an update is in memory, and not acknowledged",
    "checked": "an update is decoded, and the protocol does not know it",
    "made": "a version is computed, in this process only",
    "saving": "the store is about to write a version",
    "ahead": "a version is in the write-ahead log, and not in Orbax",
    "written": "a version has its final name, and the folder is not synced",
    "saved": "a version is durable, and not published",
    "announcing": "a version is about to be published",
    "announced": "a version is published, and no outcome is sent",
    "answering": "an update is committed, and its outcome is not sent",
    "best": "a version is the best one, and the store does not know it",
    "cleaning": "an old version has lost its name, and its files still exist",
    "ending": "the run has ended, and its summary is not written",
}

_wanted, _, _times = os.environ.get(VARIABLE, "").partition(":")
if _wanted and _wanted not in POINTS:
    sys.exit(f"error: {VARIABLE}: found {_wanted!r}, allowed: {', '.join(POINTS)}")
_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Kills this process if the environment says so."""
    if point != _wanted:
        return
    _reached[point] += 1
    if _reached[point] == int(_times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
