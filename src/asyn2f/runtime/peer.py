"""What a worker's and an evaluator's process share: their link to the server."""

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
from asyn2f.training.trainer import Training
from asyn2f.transport.base import Transport
from asyn2f.types import Buffer, GlobalModel, Params

_MOST = 1e30  # of examples and of a loss; float32 ends at 3e38
_ROUNDING = 1e-6  # of a learning rate in float32


Token = Callable[[], str]
"""The token of the run as far as it is known, or "": see `PeerProtocol`."""


def no_token() -> str:
    return ""


class Ended(NamedTuple):
    """How a peer's process ended."""

    status: str  # "finished" | "refused" | "failed"
    reason: str


class ReceivedModel(NamedTuple):
    """A version as it came, not yet decoded."""

    header: ModelHeader
    payload: Buffer


class ModelInbox:
    """The newest versions received, and whether it is time to stop.

    Holds at most `depth`; a newer one pushes out the oldest. A worker has depth 1:
    newest wins.
    """

    def __init__(self, depth: int = 1) -> None:
        self._letters: deque[ReceivedModel] = deque(maxlen=depth)
        self._changed = threading.Condition()
        self._stop: str | None = None
        self.newest = -1  # newest version received; read without the lock, by design
        self.skipped = 0  # versions pushed out before anybody took them

    def put(self, letter: ReceivedModel) -> None:
        with self._changed:
            self.skipped += len(self._letters) == self._letters.maxlen
            self._letters.append(letter)
            self.newest = letter.header.version
            self._changed.notify_all()

    def stop(self, reason: str) -> None:
        """Tells whoever waits that it is over; the first reason stands."""
        with self._changed:
            self._stop = self._stop or reason
            self._changed.notify_all()

    @property
    def stopped(self) -> str | None:
        """Why it is over, or None while it is not."""
        return self._stop

    def take(self) -> ReceivedModel | None:
        """The oldest version here, if any."""
        with self._changed:
            return self._letters.popleft() if self._letters else None

    def wait(self) -> None:
        """Until a version is here, or it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._letters or self._stop is not None)

    def wait_stopped(self, timeout_s: float) -> None:
        """Until it is over, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop is not None, timeout_s)


class PeerClient:
    """A peer's protocol at work: what comes in lands in the mailbox."""

    def __init__(
        self,
        hello: messages.Hello,
        settings: RuntimeSettings,
        transport: Transport,
        journal: Journal,
        mailbox: ModelInbox,
        token: Token,
    ) -> None:
        self.mailbox = mailbox
        self._ended: Ended | None = None
        machine = PeerProtocol(hello, settings, time.monotonic(), token)
        self._io = IoThread(machine, transport, journal, self._carry_out)
        self.start = self._io.start
        self.post = self._io.post

    def leave(self) -> Ended:
        """Says goodbye, if that has not happened, and how it ended."""
        reason = self.mailbox.stopped or "its work is done"
        self._io.post(p.StopRequested(reason))
        self._io.join(timeout_s=3.0)
        return self._ended or Ended("failed", f"the I/O thread hangs ({reason})")

    def _carry_out(self, effect: p.Effect) -> None:
        """On the I/O thread."""
        match effect:
            case p.NotifyAdmitted(run, incarnation):
                print(f"joined run {run} (incarnation {incarnation})", flush=True)
            case p.Deliver(header, payload):
                self.mailbox.put(ReceivedModel(header, payload))
            case p.StopWork(reason):
                self.mailbox.stop(reason)
            case p.Finish(status, reason):
                self._ended = Ended(status, reason)
                self.mailbox.stop(reason)


def hello_of(
    experiment: Experiment,
    terms: tuple[str, ...],
    role: str,
    worker: int = -1,
    num_examples: int = 0,
    quality: float = 1.0,
) -> messages.Hello:
    """What a process of this role says first; with a new session's name."""
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
    )


def zero_params(experiment: Experiment) -> Params:
    """Zeros of the model's shapes: something to compile with before any model came."""
    template = experiment.template
    zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in template.leaves]
    return jax.tree.unflatten(template.treedef, zeros)


def global_model(header: messages.ModelHeader, params: Params) -> GlobalModel:
    """The version whose header and parameters these are."""
    return GlobalModel(
        params=params,
        version=jnp.int32(header.version),
        num_examples=jnp.float32(header.num_examples),
        loss=jnp.float32(header.loss),
        quality=jnp.float32(header.quality),
        learning_rate=jnp.float32(header.learning_rate),
    )


def decode_model(experiment: Experiment, letter: ReceivedModel) -> GlobalModel:
    """The version in a letter, checked whole.

    Raises:
      errors.WireError: damaged, of another shape, not finite, or with a header that no
        server of this experiment would send.
    """
    header, payload = letter
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
    return global_model(header, params)


def _problem(header: messages.ModelHeader, training: Training) -> str:
    """What cannot be right about a version, or ""; floats are finite by now."""
    if not 0 <= header.version < 2**31:
        return f"its number is {header.version}, allowed 0 to 2^31 - 1"
    if not 0 < header.quality <= 1:
        return f"quality {header.quality}, allowed above 0, at most 1"
    if not (0 <= header.loss <= _MOST and 0 <= header.num_examples <= _MOST):
        return f"loss {header.loss}, {header.num_examples} examples"
    rates = training.learning_rate_min, training.learning_rate
    most = max(rates) * (1 + _ROUNDING)
    if not 0 <= header.learning_rate <= most:
        return f"learning rate {header.learning_rate}, allowed 0 to {max(rates)}"
    return ""
