"""What happens under a virtual clock, moment after moment: workers and server."""

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from asyn2f import programs
from asyn2f.programs import (
    Adopt,
    Aggregate,
    Arrived,
    Done,
    Due,
    Failed,
    Joined,
    Left,
    Listen,
    Publish,
    Push,
    Seen,
    Supersede,
    Train,
    UpdateKey,
    Wait,
)
from asyn2f.sim import order as o
from asyn2f.sim.order import Log, Order
from asyn2f.sim.virtual_worker import GONE, PARKED, VirtualWorker, soon
from asyn2f.timing import Stop, Timing

SignalOf = Callable[[Log, int], float]
"""What a worker's push may depend on, after all that the log holds."""

Accepts = Callable[[Log, int], bool]
"""Whether an update is of use to the server, after all that the log holds."""

# Beyond that, 31 years, a clock of doubles blurs what is a step apart.
_FOREVER_S = 1e9


class World:
    """One heap of moments to come, the server, and what has happened so far."""

    def __init__(
        self,
        timing: Timing,
        stop: Stop,
        seed: int,
        aggregate_s: float,
        heartbeat_timeout_s: float,
        signal_of: SignalOf | None,
        accepts: Accepts | None,
        workers: int,
    ) -> None:
        self._timing = timing
        self._stop = stop
        self._aggregate_s = aggregate_s
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._signal_of = signal_of
        self._accepts = accepts
        self._workers = workers
        self._random = Random(f"jitter {seed}")
        self._log = Log()
        self._note = self._log.note
        # Moments of one time come in the order in which they were foreseen.
        self._heap: list[tuple[float, int, Moment, Any]] = []
        self._tie = 0
        # Moments at which outages are foreseen: alone they are for ever, and nothing.
        self._looking_ahead = 0
        self._listening: list[VirtualWorker] = []  # interrupted by the next version
        self._waiting: list[VirtualWorker] = []
        self._server = programs.server_program(timing)
        self._published_s: list[float] = []
        self._inbox: deque[programs.ServerEvent] = deque()
        self._making: Aggregate | None = None
        self._due_s: float | None = None
        self._live: set[int] = set()
        self._ended: str | None = None

    def run(self) -> Order:
        next(self._server)  # listens from now on
        heap = self._heap
        limit_s, now, max_time_s = _FOREVER_S, 0.0, self._stop.max_time_s
        limit = f"{_FOREVER_S:g} virtual s have passed"
        while len(heap) > self._looking_ahead and self._ended is None:
            now, tie, moment, subject = heappop(heap)
            if now > limit_s:
                now = limit_s
                self._ended = limit
                break
            moment(subject, now, tie)
            if limit_s == _FOREVER_S and max_time_s and self._published_s:
                limit_s = min(limit_s, self._published_s[0] + max_time_s)
                if limit_s < _FOREVER_S:
                    limit = f"max_time_s = {max_time_s:g} reached"
        reason = self._ended or "nothing more can happen: no worker is left to push"
        if not self._published_s:
            return self._log.order(now, now, f"it never began: {self._absence()}")
        return self._log.order(self._published_s[0], now, reason)

    def _absence(self) -> str:
        """Why the run has not begun."""
        present = most = 0
        for kind in self._log.kind:
            present += (kind in (o.BEGIN, o.RETURN)) - (kind == o.LEAVE)
            most = max(most, present)
        return (
            f"min_workers = {self._timing.min_workers}, and of {self._workers} workers "
            f"no more than {most} were there at a time within {_FOREVER_S:g} virtual s"
        )

    def foresee(self, time_s: float, moment: "Moment", subject: Any) -> int:
        """Something will happen; its tie."""
        self._tie = tie = self._tie + 1
        heappush(self._heap, (time_s, tie, moment, subject))
        return tie

    # ------------------------------------------------------------- coming and going

    def join(self, worker: VirtualWorker, now: float, tie: int) -> None:
        number = worker.number
        self._note(now, o.BEGIN, number, 0)
        self._live.add(number)
        worker.free_s = now
        if worker.leave_s < math.inf:
            self.foresee(worker.leave_s, self._leave, worker)
        if worker.presence is not None:
            self._look_ahead(worker, now)
        next(worker.program)  # waits for any version
        if worker.newest(now, self._published_s) >= 0:
            worker.due = self.foresee(now, self._waited, worker)
        else:
            self._wait(worker)
        self._tell(Joined(now, number), now)

    def _leave(self, worker: VirtualWorker, now: float, tie: int) -> None:
        worker.due = GONE
        worker.program.close()
        self._miss(worker, now, tie)

    def _miss(self, worker: VirtualWorker, now: float, tie: int) -> None:
        """The server does not hear a worker any more."""
        if worker.number in self._live:
            self._live.discard(worker.number)
            self._note(now, o.LEAVE, worker.number, int(worker.due == GONE))
            self._tell(Left(now, worker.number), now)

    def _hear(self, worker: VirtualWorker, now: float, tie: int) -> None:
        """The server hears a worker again."""
        if now < worker.leave_s:
            self._live.add(worker.number)
            self._note(now, o.RETURN, worker.number, 0)
            self._tell(Joined(now, worker.number), now)

    def _look_again(self, worker: VirtualWorker, now: float, tie: int) -> None:
        self._looking_ahead -= 1
        self._look_ahead(worker, now)

    def _look_ahead(self, worker: VirtualWorker, now: float) -> None:
        """Foresees what a worker's next outage means to the server."""
        assert worker.presence is not None
        begin_s, end_s = worker.presence.next_outage(now)
        begin_s = max(begin_s, now)
        if begin_s >= worker.leave_s:
            return
        is_back = end_s < worker.leave_s
        missed_s = begin_s + self._heartbeat_timeout_s
        if missed_s < end_s:
            self.foresee(missed_s, self._miss, worker)
            if is_back:
                self.foresee(end_s, self._hear, worker)
        if is_back:
            self.foresee(end_s, self._look_again, worker)
            self._looking_ahead += 1

    # ------------------------------------------------------------- a worker

    def _trained(self, worker: VirtualWorker, now: float, tie: int) -> None:
        if worker.due == tie:
            self._note(now, o.TRAIN, worker.number, worker.steps)
            self._go_on(worker, now, worker.steps)

    def _waited(self, worker: VirtualWorker, now: float, tie: int) -> None:
        if worker.due == tie:
            if worker.base >= 0:
                self._note(now, o.WAITED, worker.number, 0)
            self._go_on(worker, now, 0)

    def _go_on(self, worker: VirtualWorker, now: float, steps: int) -> None:
        """Has a worker's program continue after `steps` steps, or after waiting, and
        carries out its commands until one takes time."""
        newest = worker.newest(now, self._published_s)  # time stands still from here on
        send, seen = worker.program.send, Seen(0, newest)
        command = send(Seen(steps, newest, self._signal(worker)))
        while True:
            if isinstance(command, Train):
                self._train(worker, command, now)
                return
            if isinstance(command, Push):
                self._push(worker, now)
            elif isinstance(command, Wait):
                if newest == command.known:
                    self._wait(worker)
                    return
            else:
                worker.base = newest
                what = o.ADOPT if isinstance(command, Adopt) else o.MERGE
                self._note(now, what, worker.number, newest)
                if self._signal_of is not None:  # a push may follow
                    seen = Seen(0, newest, self._signal(worker))
            command = send(seen)

    def _signal(self, worker: VirtualWorker) -> float:
        if self._signal_of is None or worker.base < 0:
            return 0.0
        return self._signal_of(self._log, worker.number)

    def _train(self, worker: VirtualWorker, train: Train, now: float) -> None:
        """Foresees the end of a stretch: its last step, or the batch boundary at which
        a version that has been published will be there."""
        steps, known = train
        pace_s = worker.step_s
        if worker.jitter:
            pace_s *= self._random.lognormvariate(0.0, worker.jitter)
        worker.start_s, worker.pace_s, worker.steps = now, pace_s, steps
        worker.end_s = end_s = worker.after(now, steps * pace_s)
        if known is not None:
            if worker.coming < 0:
                self._listening.append(worker)
            elif worker.arrival_s < end_s and self._interrupt(worker):
                return
        worker.due = self.foresee(end_s, self._trained, worker)

    def _interrupt(self, worker: VirtualWorker) -> bool:
        """Ends a stretch at the batch boundary at which the version on its way will be
        there; False if it ends before that."""
        start_s, pace_s = worker.start_s, worker.pace_s
        worked_s = worker.arrival_s - start_s
        if worker.presence is not None:
            worked_s = worker.presence.worked(start_s, worker.arrival_s)
        # A boundary that rounding puts just before the arrival counts as after it.
        rounding_s = soon(worker.arrival_s) - worker.arrival_s
        steps = max(1, math.ceil((worked_s - rounding_s) / pace_s))
        boundary_s = max(worker.after(start_s, steps * pace_s), worker.arrival_s)
        if boundary_s >= worker.end_s or steps >= worker.steps:
            return False
        worker.steps = steps
        worker.due = self.foresee(boundary_s, self._trained, worker)
        return True

    def _push(self, worker: VirtualWorker, now: float) -> None:
        log = self._log
        log.num_updates = update = log.num_updates + 1
        self._note(now, o.PUSH, worker.number, update - 1)
        arrival_s = worker.after(now, worker.upload_s)
        if arrival_s > worker.leave_s:
            self._note(now, o.LOSE, worker.number, update - 1)
        else:
            key = UpdateKey(worker.number, "", update - 1)
            self.foresee(arrival_s, self._arrive, Arrived(arrival_s, key, worker.base))

    def _wait(self, worker: VirtualWorker) -> None:
        if worker.coming < 0:
            worker.due = PARKED
            self._waiting.append(worker)
        else:
            worker.due = self.foresee(worker.arrival_s, self._waited, worker)

    # ------------------------------------------------------------- the server

    def _arrive(self, arrived: Arrived, now: float, tie: int) -> None:
        worker, _, update = arrived.key
        if self._accepts is None or self._accepts(self._log, update):
            self._tell(arrived, now)
            return
        self._note(now, o.REFUSE, worker, update)
        if arrived.base_version >= len(self._published_s) - 1:
            # Of an older one there is a newer version to go on with.
            self._tell(Failed(now, worker), now)

    def _due(self, due_s: float, now: float, tie: int) -> None:
        if self._due_s == due_s:
            self._due_s = None
            self._tell(Due(now), now)

    def _made(self, _: None, now: float, tie: int) -> None:
        self._note_version(now)
        self._serve(self._server.send(Done(now)), now)

    def _tell(self, event: programs.ServerEvent, now: float) -> None:
        """Tells the server's program, now or as soon as it has made its version."""
        if self._making is None:
            self._serve(self._server.send(event), now)
        else:
            self._inbox.append(event)

    def _serve(self, command: programs.ServerCommand, now: float) -> None:
        """Carries out the server's commands until one takes time."""
        while self._ended is None:
            if isinstance(command, Listen):
                if self._inbox:
                    command = self._server.send(self._inbox.popleft())
                    continue
                before_s, self._due_s = self._due_s, command.until_s
                if self._due_s is not None and self._due_s != before_s:
                    self.foresee(max(now, self._due_s), self._due, self._due_s)
                return
            if isinstance(command, Aggregate):
                self._making = command
                self._due_s = None
                if self._aggregate_s:
                    self.foresee(now + self._aggregate_s, self._made, None)
                    return
                self._note_version(now)
            elif isinstance(command, Publish):
                self._publish(now)
            else:
                replaced = isinstance(command, Supersede)
                what = o.SUPERSEDE if replaced else o.REJECT
                self._note(now, what, command.key.worker, command.key.seq)
            command = self._server.send(Done(now))

    def _note_version(self, now: float) -> None:
        """The version that was being made is there."""
        assert self._making is not None
        before = len(self._log.version) - 1
        members = [key.seq for key in self._making.keys]
        lacking = self._making.lacking
        node = self._log.add_version(before + 1, before, members, lacking)
        self._note(now, o.AGGREGATE, -1, node)
        self._making = None

    def _publish(self, now: float) -> None:
        version = len(self._published_s)
        self._published_s.append(now)
        self._log.receivers[version] = len(self._live)
        limit = self._stop.max_versions
        if limit and version >= limit:
            self._ended = f"max_versions = {limit} reached"
            return
        listening, self._listening = self._listening, []
        for worker in listening:
            if worker.due > PARKED and worker.coming < 0:
                worker.fetch(self._published_s)
                if worker.arrival_s < worker.end_s:
                    self._interrupt(worker)
        waiting, self._waiting = self._waiting, []
        for worker in waiting:
            if worker.due == PARKED:
                worker.fetch(self._published_s)
                worker.due = self.foresee(worker.arrival_s, self._waited, worker)


Moment = Callable[[Any, float, int], None]
"""What happens: with whom or what, when, and the tie under which it was foreseen."""
