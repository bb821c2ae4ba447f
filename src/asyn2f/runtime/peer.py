"""What workers and evaluators share: their client of the server."""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyn2f import errors, serialization
from asyn2f.kernels import codecs
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.messages import ModelHeader
from asyn2f.protocol.peer import PeerProtocol
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import IoThread, Journal
from asyn2f.training.agreement import data_digest
from asyn2f.training.experiment import Experiment
from asyn2f.training.settings import Training
from asyn2f.transport.base import Transport
from asyn2f.types import Buffer, GlobalModel, Params

_LOG = logging.getLogger("asyn2f")
_MAX_VALUE = 1e30  # of examples and of a loss; the limit of float32 is 3e38
_ROUNDING = 1e-6  # of a learning rate in float32


Token = Callable[[], str]
"""The token of the run, or "" if it is not known yet: see `PeerProtocol`."""


def no_token() -> str:
    return ""


class Ended(NamedTuple):
    """How a peer's process ended."""

    status: str  # "finished" | "refused" | "failed"
    reason: str


class ReceivedModel(NamedTuple):
    """A version as it arrived, not decoded."""

    header: ModelHeader
    payload: Buffer


class ModelInbox:
    """The newest versions received, and whether to stop.

    Holds at most `depth` versions; a newer one replaces the oldest. A worker has depth
    1: newest wins.
    """

    def __init__(self, depth: int = 1, unscored: int = 0) -> None:
        self._models: deque[ReceivedModel] = deque(maxlen=depth)
        # Of a worker that scores versions; read without the lock, by design.
        self.unscored: deque[ReceivedModel] = deque(maxlen=unscored)
        self._changed = threading.Condition()
        self._stop: str | None = None
        self.newest = -1  # newest version received; read without the lock, by design

    def put(self, received: ReceivedModel) -> None:
        with self._changed:
            self._models.append(received)
            self.unscored.append(received)
            self.newest = received.header.version
            self._changed.notify_all()

    def stop(self, reason: str) -> None:
        """Ends all waits; the first reason stands."""
        with self._changed:
            self._stop = self._stop or reason
            self._changed.notify_all()

    @property
    def stopped(self) -> str | None:
        """The reason to stop, or None."""
        return self._stop

    def take(self) -> ReceivedModel | None:
        """Removes and returns the oldest version, if any."""
        with self._changed:
            return self._models.popleft() if self._models else None

    def take_unscored(self) -> ReceivedModel | None:
        """Removes and returns the oldest version that is to be scored, if any."""
        if not self.unscored:
            return None
        with self._changed:
            return self.unscored.popleft() if self.unscored else None

    def wait(self) -> None:
        """Waits for a version, or `stop`."""
        with self._changed:
            self._changed.wait_for(lambda: self._models or self._stop is not None)

    def wait_stopped(self, timeout_s: float) -> None:
        """Waits for `stop`, for at most `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop is not None, timeout_s)


class PeerClient:
    """Runs a peer's protocol on an I/O thread; versions arrive in the inbox."""

    def __init__(
        self,
        hello: messages.Hello,
        settings: RuntimeSettings,
        transport: Transport,
        journal: Journal,
        inbox: ModelInbox,
        token: Token,
    ) -> None:
        self.inbox = inbox
        self._ended: Ended | None = None
        machine = PeerProtocol(hello, settings, time.monotonic(), token)
        self._io = IoThread(machine, transport, journal, self._carry_out)
        self.start = self._io.start
        self.post = self._io.post

    def leave(self) -> Ended:
        """Ends the protocol, if it has not ended; returns how."""
        reason = self.inbox.stopped or "its work is done"
        self._io.post(p.StopRequested(reason))
        self._io.join(timeout_s=3.0)
        return self._ended or Ended("failed", f"the I/O thread hangs ({reason})")

    def _carry_out(self, effect: p.Effect) -> None:
        """On the I/O thread."""
        match effect:
            case p.NotifyAdmitted(run, incarnation):
                _LOG.info("joined run %s (incarnation %d)", run, incarnation)
            case p.Deliver(header, payload):
                self.inbox.put(ReceivedModel(header, payload))
            case p.StopWork(reason):
                self.inbox.stop(reason)
            case p.Finish(status, reason):
                self._ended = Ended(status, reason)
                self.inbox.stop(reason)


def hello_of(
    experiment: Experiment,
    terms: tuple[str, ...],
    role: str,
    worker: int = -1,
    num_examples: int = 0,
    quality: float = 1.0,
    held_out: int = 0,
) -> messages.Hello:
    """The hello of a process of this role, with a new session."""
    return messages.Hello(
        protocol=messages.PROTOCOL,
        role=role,
        worker=worker,
        session=secrets.token_hex(8),
        first=-1,
        token="",
        fingerprint=experiment.template.fingerprint,
        coding=str(experiment.coding),
        num_examples=num_examples,
        quality=quality,
        data=data_digest(experiment.task, worker),
        terms=terms,
        held_out=held_out,
    )


def zero_params(experiment: Experiment) -> Params:
    """Zeros of the model's shapes, to compile with."""
    template = experiment.template
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in template.leaves]
    return jax.tree.unflatten(template.treedef, zeros)


def zero_model(experiment: Experiment) -> GlobalModel:
    """A version 0 of `zero_params`."""
    zero, one = jnp.float32(0), jnp.float32(1)
    return GlobalModel(zero_params(experiment), jnp.int32(0), zero, zero, one, zero)


def decode_model(experiment: Experiment, received: ReceivedModel) -> GlobalModel:
    """Decodes and validates a version.

    Raises:
      WireError: it is damaged, of another shape or not finite, or its header is
        invalid.
    """
    header, payload = received
    publication = experiment.publication
    payload = wire_format.decompress(header, payload, publication.template)
    coded = serialization.decode_params(publication.template, payload)
    problem = codecs.problem_of(coded, experiment.template.sizes)
    if problem:
        raise errors.WireError(f"version {header.version}: {problem}")
    params = publication.decode(serialization.to_device(coded))
    bad = serialization.nonfinite_leaf(params)
    if bad:
        raise errors.WireError(f"version {header.version}: {bad} is not finite")
    problem = _problem(header, experiment.training)
    if problem:
        raise errors.WireError(f"version {header.version}: {problem}")
    return GlobalModel(
        params=params,
        version=jnp.int32(header.version),
        num_examples=jnp.float32(header.num_examples),
        loss=jnp.float32(header.loss),
        quality=jnp.float32(header.quality),
        learning_rate=jnp.float32(header.learning_rate),
    )


def _problem(header: messages.ModelHeader, training: Training) -> str:
    """What is wrong with the header of a version, or ""; its floats are finite."""
    if not 0 <= header.version < 2**31:
        return f"its number is {header.version}, allowed 0 to 2^31 - 1"
    if not 0 < header.quality <= 1:
        return f"quality {header.quality}, allowed above 0, at most 1"
    if not (0 <= header.loss <= _MAX_VALUE and 0 <= header.num_examples <= _MAX_VALUE):
        return f"loss {header.loss}, {header.num_examples} examples"
    rates = training.learning_rate_min, training.learning_rate
    most = max(rates) * (1 + _ROUNDING)
    if not 0 <= header.learning_rate <= most:
        return f"learning rate {header.learning_rate}, allowed 0 to {max(rates)}"
    return ""
