"""`OWN_TASK=regression python -m tests.support.own_program simulate ...`: the programs
with a task of `tests.support.tasks` in place of the configured one."""

import os

from asyn2f.config import build
from tests.support import tasks


def _make_task(settings, workers, seed):
    return getattr(tasks, os.environ["OWN_TASK"])(workers=workers)


build.make_task = _make_task  # in the processes of a pool too, which import this module

if __name__ == "__main__":
    from asyn2f.cli.main import main

    main()
