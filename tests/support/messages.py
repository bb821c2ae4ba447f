"""What tests of the protocol begin with: settings, and messages that fit them."""

import json
from typing import Any

from asyn2f import serialization
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.settings import RuntimeSettings, ServerSettings
from asyn2f.timing import Stop
from asyn2f.types import Metric
from tests.support.updates import update_info

RUNTIME = {
    "heartbeat_interval_s": 0.5,
    "heartbeat_timeout_s": 1.5,
    "server_timeout_s": 8.0,
    "join_timeout_s": 8.0,
}
ENDLESS = Stop()


def server_settings(**changes: Any) -> ServerSettings:
    """Settings of a new run, but for those."""
    names = {"run": "run-1", "strategy": "any", "terms": ("seed=0",)}
    sizes = {"fingerprint": "tree", "coding": "plain", "num_bytes": 100}
    sizes |= {"workers": 2, "min_workers": 1}
    ports = {"incarnation": 1, "model_port": 1, "update_port": 2}
    start = {
        "stop": ENDLESS,
        "metric": Metric("accuracy", is_fraction=True),
        "best": None,
        "accounting": {},
        "replaces": True,
    }
    start |= {"waits": False, "most_open": 4}
    runtime = {"runtime": RuntimeSettings(**RUNTIME)}
    return ServerSettings(**(names | sizes | ports | start | runtime | changes))


def hello_of(worker: int, session: str, /, **changes: Any) -> messages.Hello:
    """What a worker says first, or for worker -1 the evaluator."""
    role, examples = ("worker", 10) if worker >= 0 else ("evaluator", 0)
    known = (session, -1, "", "tree", "plain", examples, 1.0, "", ("seed=0",))
    return messages.Hello(messages.PROTOCOL, role, worker, *known)._replace(**changes)


def made(
    version: int, keys: tuple[UpdateKey, ...] = (), incarnation: int = 1
) -> p.VersionAggregated:
    """A version of these updates."""
    payload, numbers = json.dumps(keys).encode(), (10.0 * len(keys), 0.5, 1.0, 0.1)
    sums = ("tree", len(payload), serialization.digest(payload))
    header = messages.ModelHeader("run-1", incarnation, version, *numbers, *sums)
    return p.VersionAggregated(header, payload)


def produced(payload: bytes, base: int) -> p.UpdateReady:
    """A worker's update."""
    sums = "tree", len(payload), serialization.digest(payload)
    return p.UpdateReady(update_info(base), *sums, payload, time_s=0.0)


def header_of(
    worker: int, session: str, seq: int = 0, /, base: int = 0, payload: bytes = b""
) -> messages.UpdateHeader:
    """The header of such an update, of run-1."""
    sums = "tree", len(payload), serialization.digest(payload)
    key = worker, session, seq
    return messages.UpdateHeader("run-1", 1, *key, update_info(base), *sums)
