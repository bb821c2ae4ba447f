"""Settings of the processes, their protocol and their store."""

from dataclasses import dataclass
from typing import Any, Literal

from asyn2f.timing import Stop

PublishWhen = Literal["after_save", "before_save"]


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """How a run is carried out; nothing here changes what is computed.

    Attributes:
      address: where the server listens, tcp://host:port; with port p also at p + 1 and
        p + 2; port 0 = any free ones.
      keys_dir: the folder of keys by which all know each other; each process reads its
        own there. Empty: no keys, and no address that others can reach.
      publish: `after_save`: a version is announced once it is in the store, so that no
        crash loses one that anybody saw. `before_save`: at once.
      keep_last: versions kept in the store, at least; and whatever is younger than
        `keep_younger_than_s`; and the best, for ever.
      keep_younger_than_s: seconds.
      write_ahead: small versions (4 MiB at most) are in the store as soon as a plain
        file holds them; Orbax follows behind.
      heartbeat_interval_s: how often a peer says how it is.
      heartbeat_timeout_s: a peer that is silent for longer counts as gone until it is
        heard.
      server_timeout_s: a peer that hears nothing from the server for longer ends
        itself.
      max_updates_per_s: a worker that pushes more often, after a burst of two seconds'
        worth, is told to wait; 0 = no limit.
      join_timeout_s: how long a peer tries to register.
      zstd: updates and versions are packed by whom this is set for; all unpack them.
      shared_memory: models of a megabyte or more pass between the server and peers on
        its machine through memory that both see.
      worker_speeds: steps per second of worker 0, 1, ... at most; 0 = as fast as it
        can. A shorter list is repeated. To show stragglers on one machine.
      pin_cpus: give each worker one core, worker i core i modulo their number.
      idle_priority: workers and evaluator of `launch.local` compute only when nobody
        else on the machine wants to; otherwise they are merely nicer than others.
    """

    address: str = "tcp://127.0.0.1:0"
    keys_dir: str = ""
    publish: PublishWhen = "after_save"
    keep_last: int = 10
    keep_younger_than_s: float = 120.0
    write_ahead: bool = True
    heartbeat_interval_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    server_timeout_s: float = 60.0
    join_timeout_s: float = 60.0
    max_updates_per_s: float = 0.0
    zstd: bool = False
    shared_memory: bool = True
    worker_speeds: tuple[float, ...] = (0.0,)
    pin_cpus: bool = True
    idle_priority: bool = True


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server's protocol knows of its run."""

    run: str
    incarnation: int
    strategy: str
    terms: tuple[str, ...]  # see `wire.Hello`; what a peer's must be
    fingerprint: str
    coding: str  # of updates and versions, in words
    num_bytes: int
    workers: int
    # By worker, the examples and the quality it must register with; () = any.
    shards: tuple[tuple[int, float], ...] = ()
    # Digests of their data, and after them that of the evaluator's; () = any.
    data: tuple[str, ...] = ()
    token: str = ""  # that peers must present
    min_workers: int
    replaces: bool  # whether a worker's newer update replaces its pending one
    waits: bool  # whether a worker that has pushed waits for the next version
    deadline_s: float = 0.0  # of a round; 0 = none
    most_open: int  # updates without a verdict that one worker may have here
    stop: Stop
    runtime: RuntimeSettings
    model_port: int
    update_port: int
    best: tuple[float | None, int | None]  # accuracy and version so far
    accounting: dict[
        str, Any
    ]  # as they stand in the record of the first version; or {}
