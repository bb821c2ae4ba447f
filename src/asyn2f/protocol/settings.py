"""Settings of the processes of a run, and of the server's protocol."""

from dataclasses import dataclass
from typing import Any, Literal

from asyn2f.settings import setting
from asyn2f.timing import Stop
from asyn2f.types import Best, Metric

PublishWhen = Literal["after_save", "before_save"]


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """How the processes of a run are carried out; the numbers do not depend on it."""

    address: str = setting(
        "tcp://127.0.0.1:0",
        "where the server listens, on this port p, p + 1 and p + 2; port 0 = any free "
        "ones",
        allowed="tcp://host:port",
    )
    keys_dir: str = setting(
        "",
        "the folder of keys that `asyn2f keys` made; empty = no keys, and no address "
        "that other machines can reach",
        allowed="a folder, or empty",
        is_path=bool,
    )
    publish: PublishWhen = setting(
        "after_save",
        "`after_save`: publish a version once it is in the store, so that no crash "
        "loses a published version; `before_save`: at once",
    )
    heartbeat_interval_s: float = setting(
        1.0, "time between a peer's heartbeats", unit="s", above=0
    )
    heartbeat_timeout_s: float = setting(
        3.0,
        "a peer that is silent for longer counts as gone until it is heard again",
        unit="s",
        above=0,
    )
    server_timeout_s: float = setting(
        60.0,
        "a peer that hears nothing from the server for longer ends itself",
        unit="s",
        above=0,
    )
    join_timeout_s: float = setting(
        60.0, "how long a peer tries to register", unit="s", above=0
    )
    max_updates_per_s: float = setting(
        0.0,
        "a worker that pushes more often, after a burst of two seconds' worth, is told "
        "to wait; 0 = no limit",
        unit="1/s",
        at_least=0,
    )
    zstd: bool = setting(
        False,
        "compress outgoing payloads without loss; every receiver can decompress them",
    )
    shared_memory: bool = setting(
        True,
        "pass models of a megabyte or more through shared memory between processes of "
        "one machine",
    )
    worker_speeds: tuple[float, ...] = setting(
        (0.0,),
        "the most that workers 0, 1, ... compute, repeated over the workers; 0 = no "
        "limit. Shows stragglers on one machine",
        unit="steps/s",
        at_least=0,
        at_root=True,
    )
    pin_cpus: bool = setting(
        True, "one core for each worker of `asyn2f run`, where they compute on CPUs"
    )
    idle_priority: bool = setting(
        True,
        "workers and evaluator of `asyn2f run` compute at SCHED_IDLE priority; False = "
        "at nice 10, which leaves them a tenth of a core that other programs keep busy",
    )


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The constants of a run in the server's protocol."""

    run: str  # its id
    incarnation: int
    strategy: str
    terms: tuple[str, ...]  # of `messages.Hello`, which a peer's must equal
    fingerprint: str
    coding: str  # of updates and versions, in words
    num_bytes: int  # of a version's parameters
    workers: int
    # By worker, the examples and quality it must register with; () = any.
    shards: tuple[tuple[int, float], ...] = ()
    # Digests of their data, followed by that of the evaluator's; () = any, and "" is
    # any as well.
    data: tuple[str, ...] = ()
    # The most examples that a worker may register with, whose own data are pinned by
    # its first registration; 0 = `shards` and `data` have them.
    most_examples: int = 0
    federated: bool = False  # whether workers score the versions, and no evaluator
    token: str = ""  # that peers must present
    min_workers: int
    replaces: bool  # whether a worker's newer update replaces its pending one
    waits: bool  # whether a worker waits for the next version after a push
    deadline_s: float = 0.0  # of a round; 0 = none
    most_open: int  # updates without an outcome that one worker may have here
    stop: Stop
    runtime: RuntimeSettings
    model_port: int
    update_port: int
    metric: Metric  # the headline
    best: Best | None  # so far
    # Of the record of the first version; {} unless the run is resumed.
    accounting: dict[str, Any]
