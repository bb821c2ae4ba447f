"""The worker's and the server's algorithm, as generators of commands.

A program yields commands and receives their results. It uses no JAX, no sockets and no
clock: time reaches it inside the events. Its interpreters (the runtime's processes, a
virtual clock, a test) decide how a command is carried out, so the same forty lines run
everywhere.
"""

from asyn2f.programs.server import (
    Aggregate,
    Arrived,
    Done,
    Due,
    Failed,
    Joined,
    Left,
    Listen,
    NotMade,
    Publish,
    Reject,
    ServerCommand,
    ServerEvent,
    ServerProgram,
    Supersede,
    UpdateKey,
    server_program,
)
from asyn2f.programs.worker import (
    Adopt,
    Merge,
    Push,
    Seen,
    Train,
    Wait,
    WorkerCommand,
    WorkerProgram,
    worker_program,
)

__all__ = [
    "Adopt",
    "Aggregate",
    "Arrived",
    "Done",
    "Due",
    "Failed",
    "Joined",
    "Left",
    "Listen",
    "Merge",
    "NotMade",
    "Publish",
    "Push",
    "Reject",
    "Seen",
    "ServerCommand",
    "ServerEvent",
    "ServerProgram",
    "Supersede",
    "Train",
    "UpdateKey",
    "Wait",
    "WorkerCommand",
    "WorkerProgram",
    "server_program",
    "worker_program",
]
