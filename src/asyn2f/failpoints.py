"""Named places at which a server can be made to die: how the promises about crashes are
tested on real processes.

    ASYN2F_DIE_AT=announced:3 python -m launch.server ...

kills the process, as a power cut would, when it comes to that place for the third time.
"""

import os
import signal
from collections import Counter

VARIABLE = "ASYN2F_DIE_AT"

POINTS = {
    "begun": "its incarnation is taken, and nothing else has happened",
    "received": "an update is in memory, and its receipt has not been sent",
    "checked": "an update has been decoded, and the protocol has not been told",
    "made": "a version is computed, and nobody but this process has it",
    "saving": "the store is about to write a version",
    "ahead": "a version is written ahead, and Orbax does not have it",
    "written": "a version has been put in its place; the folder is not synced",
    "saved": "a version is in the store for good, and nobody knows",
    "announcing": "a version is about to be published",
    "announced": "a version has been published, and no outcome has been sent",
    "answering": "an update is committed, and its worker has not been told",
    "best": "a version is the best, and the store does not know yet",
    "cleaning": "an old version has lost its name, and its files are still there",
    "ending": "the run is over, and its summary is not written",
}

_wanted, _, _times = os.environ.get(VARIABLE, "").partition(":")
_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Kills this process if it was told to die here; otherwise nothing."""
    if point != _wanted:
        return
    _reached[point] += 1
    if _reached[point] == int(_times or 1):
        os.kill(os.getpid(), signal.SIGKILL)
