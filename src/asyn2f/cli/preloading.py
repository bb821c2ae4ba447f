"""The process that the children of `launch.local` are forked from.

It imports what they need, which takes as long as the launcher's own imports: so this
module imports nothing that takes time, and can be the first.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from multiprocessing import forkserver, util

from asyn2f.cli import descriptors

_LONGEST = 104 - len("/pymp-xxxxxxxx/listener-xxxxxxxx") - 1
_MODULES = ["asyn2f.cli.children", "flax.linen", "optax"]


def begin() -> None:
    """Has it import, meanwhile; it ends with this process if nobody needs it."""
    descriptors.raise_limit()  # for all of them
    _choose_short_folder()
    multiprocessing.get_context("forkserver").set_forkserver_preload(_MODULES)
    # Several processes share one accelerator: none may take all of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # What ignores Ctrl-C from its first moment shows no traceback while it imports; and
    # a terminal that is gone is the launcher's business, which tells its children.
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    forkserver.ensure_running()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _choose_short_folder() -> None:
    """Has the address of its socket lie in a folder with a short name, as the name of a
    socket has at most 104 characters, and that of TMPDIR may have more."""
    if len(tempfile.gettempdir()) <= _LONGEST:
        return
    before = tempfile.tempdir
    for folder in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd()):
        if len(folder) <= _LONGEST and os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            util.get_temp_dir()  # which remembers what it has made
            tempfile.tempdir = before
            return
    sys.exit(
        f"error: TMPDIR: found {tempfile.gettempdir()}, too long for the name of a "
        f"socket; allowed: at most {_LONGEST} characters"
    )
