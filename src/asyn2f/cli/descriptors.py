"""File descriptors: how many a run needs, and how many a process may have."""

import resource

from asyn2f.errors import DescriptorError

_ENOUGH = 65_536  # more than 10,000 workers need; a system's limit may be infinite
# Measured, with a third more for what comes and goes: files that are written, peers
# that come anew while their old connections have not ended yet.
_SERVER, _OF_A_PEER = 50, 4
_LAUNCHER, _OF_A_CHILD = 20, 3


def raise_limit() -> None:
    """Raises the soft limit as far as the hard one allows; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_ENOUGH, 10_240):  # macOS allows no more than this
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        return


def needed(workers: int) -> int:
    """The descriptors of the largest process of a run with that many workers.

    >>> needed(workers=5), needed(workers=300)
    (74, 1254)
    """
    server = _SERVER + _OF_A_PEER * (workers + 1)
    launcher = _LAUNCHER + _OF_A_CHILD * (workers + 2)
    return max(server, launcher)


def check(workers: int) -> None:
    """Raises the soft limit of descriptors and checks that it is high enough for a run.

    Raises:
      DescriptorError: the hard limit is too low.
    """
    raise_limit()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < needed(workers):
        raise DescriptorError(
            f"config.workers: found {workers}, which need {needed(workers)} file "
            f"descriptors, and the limit is {limit}; raise it (ulimit -n), or take "
            "fewer workers"
        )
