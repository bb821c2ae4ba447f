"""Agreement of the processes of a run, besides their config: data and JAX settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import xxhash

from asyn2f import trace
from asyn2f.errors import DataError
from asyn2f.tasks.base import Task, num_rows

# Settings of JAX that change numbers by more than their last bits; an environment
# variable of the name in capitals sets each.
FLAGS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_default_matmul_precision",
)
# And those that change last bits: a replay sets them too.
REPLAYED = (
    *FLAGS,
    "jax_disable_jit",
    "jax_use_direct_linearize",
    "jax_softmax_custom_jvp",
)
_ROWS = 4096  # hashed at a time: data may be larger than memory
_LONGEST = 96  # characters of a term's value
_MOST_BYTES = 3000  # of all terms: they are part of a message's header


def flags(names: tuple[str, ...] = FLAGS) -> dict[str, Any]:
    """The settings of JAX in this process that numbers depend on, by name."""
    return {name: getattr(jax.config, name) for name in names}


def made_by(events: Iterable[trace.Event]) -> list[trace.ProcessStarted]:
    """The heads of the processes that computed a run's numbers: the simulation, or each
    worker's process that has trained."""
    found: dict[str, trace.ProcessStarted] = {}  # by actor, the newest
    made: dict[int, trace.ProcessStarted] = {}
    for event in events:
        if isinstance(event, trace.ProcessStarted):
            found[event.actor] = event
            if event.actor == "simulation":
                made[id(event)] = event
        elif isinstance(event, trace.Trained):
            head = found.get(f"worker-{event.worker}")
            if head is not None:
                made[id(head)] = head
    return list(made.values())


def check_flags(environments: Iterable[Mapping[str, Any]]) -> None:
    """Compares the JAX flags that numbers depend on with the recorded ones.

    Raises:
      ValueError: one differs; names what to set.
    """
    here = flags()
    for there in environments:
        differs = [k for k in FLAGS if k in there and there[k] != here[k]]
        if differs:
            found = ", ".join(f"{k} {there[k]!r}, here {here[k]!r}" for k in differs)
            raise ValueError(
                f"the run was made with {found}: set it with jax.config.update, or by "
                "an environment variable of its name, before anything is computed"
            )


def set_flags(environment: Mapping[str, Any]) -> None:
    """Applies the recorded settings of JAX; call it before anything is computed."""
    for name in REPLAYED:
        if name in environment:
            jax.config.update(name, environment[name])


def terms_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """A line "key=value" per setting, for comparison. A long value is replaced by its
    beginning and a digest; so are all, if they are too long together.

    >>> terms_of({"seed": 0, "task.hidden": (8, 8)})
    ('seed=0', 'task.hidden=[8,8]')
    """
    longest = _LONGEST
    while True:
        terms = tuple(
            f"{key}={_shortened(json.dumps(value, separators=(',', ':')), longest)}"
            for key, value in sorted(settings.items())
        )
        if longest == 0 or sum(len(term.encode()) + 3 for term in terms) < _MOST_BYTES:
            return terms
        longest //= 2


def _shortened(text: str, longest: int) -> str:
    if len(text) <= max(longest, 12):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[:longest]}...#{digest}"


def data_digest(task: Task, worker: int) -> str:
    """XXH3-128 of the bytes of a worker's rows, those that it holds out included, or
    for worker -1 of the test set."""
    found = xxhash.xxh3_128()
    if worker < 0:
        _add(found, task.test, None)
        return found.hexdigest()
    _add(found, task.train, task.shards[worker])
    if task.held_out:
        _add(found, task.test, task.held_out[worker])
    return found.hexdigest()


def _add(found: xxhash.xxh3_128, data: Any, rows: np.ndarray | None) -> None:
    for name, array in sorted(data.items()):
        count = len(array) if rows is None else len(rows)
        found.update(f"{name} {array.dtype} {array.shape[1:]} {count};".encode())
        for start in range(0, count, _ROWS):
            span = slice(start, start + _ROWS)
            chunk = array[span if rows is None else np.asarray(rows)[span]]
            found.update(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)


def data_digests(task: Task) -> tuple[str, ...]:
    """The digests of every worker's data, and then of the test set's; "" for data that
    this process does not have."""
    found = [
        data_digest(task, worker) if len(rows) else ""
        for worker, rows in enumerate(task.shards)
    ]
    return (*found, data_digest(task, -1) if num_rows(task.test) else "")


def check_registered(task: Task, events: Iterable[trace.Event]) -> None:
    """Compares each worker's data with those that it registered with.

    Raises:
      DataError: they differ.
    """
    joined = (event for event in events if isinstance(event, trace.WorkerJoined))
    then = {event.worker: event.data for event in joined if event.data}
    for worker, digest in sorted(then.items()):
        now = data_digest(task, worker) if 0 <= worker < len(task.shards) else ""
        if now != digest:
            raise DataError(
                f"the data of worker {worker} differ from those that it registered "
                f"with: digest {now}, then {digest}"
            )
