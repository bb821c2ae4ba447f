"""Settings of a run under the virtual clock."""

import math
from dataclasses import dataclass
from typing import Literal

from asyn2f.settings import setting

Executor = Literal["auto", "serial", "vectorised", "sharded", "debug"]


def is_profiles_file(name: str) -> bool:
    """Whether the setting `profiles` names a file.

    >>> is_profiles_file("drawn"), is_profiles_file("lab/phones.csv")
    (False, True)
    """
    return name.endswith((".csv", ".jsonl"))


@dataclass(frozen=True, kw_only=True)
class SimSettings:
    """Simulation alone: speeds, links and presence of the workers, and the executor."""

    profiles: str = setting(
        "drawn",
        "`drawn` from the distributions below, or a file with a row per worker",
        allowed="drawn, or a file .csv or .jsonl",
        holds=lambda x: x == "drawn" or is_profiles_file(x),
        is_path=is_profiles_file,
    )
    step_s: tuple[float, ...] = setting(
        (0.0,),
        "time of a local step, repeated over the workers; 0 = 1 / worker_speeds, or "
        "0.01 without those",
        unit="s",
        at_least=0,
    )
    step_spread: float = setting(
        1.0,
        "... times a factor drawn log-uniformly from [1, step_spread]: how much slower "
        "than the fastest the slowest worker is",
        at_least=1,
    )
    jitter: float = setting(
        0.0,
        "sigma of the log-normal factor of each stretch of steps",
        at_least=0,
        at_most=10,
    )
    upload_s: float = setting(0.0, "latency of a push", unit="s", at_least=0)
    download_s: float = setting(0.0, "latency of a version", unit="s", at_least=0)
    upload_mbps: float = setting(
        0.0, "bandwidth; 0 = no limit", unit="Mbit/s", at_least=0
    )
    download_mbps: float = setting(
        0.0, "bandwidth; 0 = no limit", unit="Mbit/s", at_least=0
    )
    link_spread: float = setting(
        1.0,
        "latencies and bandwidths are worse by a factor drawn log-uniformly from [1, "
        "link_spread]",
        at_least=1,
    )
    join_window_s: float = setting(
        0.0,
        "workers join at times drawn uniformly from [0, join_window_s]",
        unit="s",
        at_least=0,
    )
    mean_session_s: float = setting(
        0.0,
        "... and leave for good after an exponential time of this mean; 0 = never",
        unit="s",
        at_least=0,
    )
    outage_every_s: float = setting(
        0.0,
        "mean time between a worker's outages, exponential; 0 = no outages",
        unit="s",
        allowed="0, for never, or at least 0.001",
        holds=lambda x: x == 0 or 1e-3 <= x < math.inf,
    )
    outage_s: float = setting(
        0.0, "mean length of an outage, exponential", unit="s", at_least=0
    )
    aggregate_s: float = setting(
        0.0, "time that the server takes for a version", unit="s", at_least=0
    )
    evaluate_every: int = setting(
        0, "0 = about 200 evaluations in all", unit="versions", at_least=0
    )
    executor: Executor = setting(
        "auto", "how the order of a run is executed, see `sim.executors.execute`"
    )
    lanes: int = setting(0, "lanes per device; 0 = as usual there", at_least=0)
