"""The process that the children of `launch.local` are forked from.

It imports what they need, which takes as long as the launcher's own imports: so this
module imports nothing that takes time, and can be the first.
"""

import multiprocessing
import os
import signal
from multiprocessing import forkserver

from launch import descriptors

_MODULES = ["launch.children", "flax.linen", "optax"]


def begin() -> None:
    """Has it import, meanwhile; it ends with this process if nobody needs it."""
    descriptors.raise_limit()  # for all of them
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
