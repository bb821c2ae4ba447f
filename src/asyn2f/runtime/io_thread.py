"""The I/O thread of a process, which owns its sockets and runs its protocol.

JAX, decoding and disks never run here: what takes time is an effect for another thread,
so the sockets are always polled (a bound subscriber that does not poll loses messages).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Protocol

from asyn2f import errors, failpoints, trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import Arrival, Frames, Malformed, Subscribed
from asyn2f.transport.base import Transport

_LOG = logging.getLogger("asyn2f")
_LINGER_S = 0.5  # for the last messages, such as a goodbye
_MOST_REASONS = 256  # a peer can cause any number of them


class ProtocolMachine(Protocol):
    """A protocol without I/O."""

    @property
    def due_s(self) -> float: ...

    def on(self, event: p.Event, now: float) -> list[p.Effect]: ...


class Journal:
    """A process's trace, stamped with wall time."""

    def __init__(self, writer: trace.TraceWriter) -> None:
        self._writer = writer
        self._clock = trace.WallClock()

    def write(self, event: trace.Event) -> None:
        """Writes an event whose times are monotonic."""
        self._writer.write(self._clock.stamp(event))

    def close(self) -> None:
        self._writer.close()


class IoThread:
    """Runs a protocol over a transport until its `Finish`.

    `carry_out` is called, on this thread, with every effect that is not for the sockets
    or the journal; it must only pass it on. It receives `Finish` in any case.
    """

    def __init__(
        self,
        machine: ProtocolMachine,
        transport: Transport,
        journal: Journal,
        carry_out: Callable[[p.Effect], None],
    ) -> None:
        self._machine = machine
        self._transport = transport
        self._journal = journal
        self._carry_out = carry_out
        self._posted: SimpleQueue[p.Event] = SimpleQueue()
        self._finished = False
        self.dropped: Counter[str] = Counter()  # malformed messages, by reason
        self._thread = threading.Thread(target=self._run, name="io", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, event: p.Event) -> None:
        """Queues an event; from any thread, and from signal handlers."""
        self._posted.put(event)
        self._transport.wake()

    def join(self, timeout_s: float) -> None:
        """Waits until the protocol has finished and the sockets are closed."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._finished:
                wait_s = max(0.0, self._machine.due_s - time.monotonic())
                for item in self._transport.poll(wait_s):
                    self._take(item)
                while not self._finished:
                    try:
                        self._tell(self._posted.get_nowait())
                    except Empty:
                        break
                if time.monotonic() >= self._machine.due_s:
                    self._tell(p.Tick())
        except Exception as error:
            logging.exception("the I/O thread has failed")
            self._carry_out(p.Finish("failed", f"I/O thread: {error!r}"))
        finally:
            self._transport.close(_LINGER_S)

    def _take(self, item: Arrival) -> None:
        match item:
            case Subscribed():
                self._tell(item)
            case Frames(channel, sender, header, payload, identity):
                try:
                    message = wire_format.decode(header)
                except errors.WireError as error:
                    self._drop(str(error))
                else:
                    self._tell(p.FromWire(channel, sender, message, payload, identity))
            case Malformed(channel, reason):
                self._drop(f"{channel.value}: {reason}")

    def _drop(self, reason: str) -> None:
        full = len(self.dropped) >= _MOST_REASONS and reason not in self.dropped
        self.dropped["other reasons" if full else reason] += 1

    def _tell(self, event: p.Event) -> None:
        if self._finished:
            return
        for effect in self._machine.on(event, time.monotonic()):
            match effect:
                case p.Send(peer, message):
                    _reach(message)
                    self._transport.send(peer, wire_format.encode(message))
                case p.Broadcast(topic, header, payload):
                    _reach(header)
                    sent = self._transport.publish(
                        topic, wire_format.encode(header), payload
                    )
                    if not sent and isinstance(header, messages.UpdateHeader):
                        self._tell(p.SendFailed(header))
                case p.Connect(topics, model_port, update_port):
                    self._transport.connect(topics, model_port, update_port)
                case p.RecordEvent(noted):
                    self._journal.write(noted)
                    _log(noted)
                    if isinstance(noted, trace.Published):
                        failpoints.reach("announced")
                case p.Warn(text):
                    logging.warning("%s", text)
                case _:
                    self._finished = self._finished or isinstance(effect, p.Finish)
                    self._carry_out(effect)


def _log(event: trace.Event) -> None:
    """Logs registrations and departures, one line each."""
    match event:
        case trace.WorkerJoined(_, worker, _, count):
            _LOG.info("worker %d has joined with %d examples", worker, count)
        case trace.WorkerLeft(_, worker, _, reason):
            _LOG.info("worker %d has left: %s", worker, reason)


def _reach(message: messages.Message) -> None:
    """The failpoints of messages that are sent."""
    match message:
        case messages.UpdateReceived():
            failpoints.reach("received")
        case messages.ModelHeader():
            failpoints.reach("announcing")
        case messages.UpdateOutcome() if message.outcome == "committed":
            failpoints.reach("answering")
