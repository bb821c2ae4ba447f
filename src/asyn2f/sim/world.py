"""A discrete-event simulation of workers and server under a virtual clock."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

from asyn2f import programs
from asyn2f.programs import Adopt, Arrived, Push, Seen, Train, UpdateKey, Wait
from asyn2f.sim import order as o
from asyn2f.sim.order import Log, Order
from asyn2f.sim.virtual_server import Handler, VirtualServer
from asyn2f.sim.virtual_worker import GONE, PARKED, VirtualWorker
from asyn2f.timing import Stop, Timing

SignalOf = Callable[[Log, int], float]
"""A worker's signal, on which its push may depend, after all events of the log."""

Accepts = Callable[[Log, int], bool]
"""Whether the server accepts an update, after all events of the log."""

# 31 years: beyond that, doubles no longer tell a step from the next.
_FOREVER_S = 1e9


class World:
    """The event queue, the server, and the log of what has happened."""

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
        self._timing, self._stop = timing, stop
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._signal_of, self._accepts = signal_of, accepts
        self._workers = workers
        self._random = Random(f"jitter {seed}")
        self._log = Log()
        self._note = self._log.note
        # Events of one time happen in the order in which they were scheduled.
        self._heap: list[tuple[float, int, Handler, Any]] = []
        self._tie = 0
        # Events that look up outages: if there are no others, nothing more can happen.
        self._looking_ahead = 0
        self._listening: list[VirtualWorker] = []  # interrupted by the next version
        self._waiting: list[VirtualWorker] = []
        self._live: set[int] = set()
        self._server = VirtualServer(
            timing, stop, aggregate_s, self._log, self.schedule, self._published
        )
        self._send = self._server.send
        self._published_s = self._server.published_s

    def run(self) -> Order:
        heap, server = self._heap, self._server
        limit_s, now, max_time_s = _FOREVER_S, 0.0, self._stop.max_time_s
        limit = f"{_FOREVER_S:g} virtual s have passed"
        while len(heap) > self._looking_ahead and server.ended is None:
            now, tie, handler, subject = heappop(heap)
            if now > limit_s:
                now = limit_s
                server.ended = limit
                break
            handler(subject, now, tie)
            if limit_s == _FOREVER_S and max_time_s and self._published_s:
                limit_s = min(limit_s, self._published_s[0] + max_time_s)
                if limit_s < _FOREVER_S:
                    limit = f"max_time_s = {max_time_s:g} reached"
        reason = server.ended or "nothing more can happen: no worker is left to push"
        if not self._published_s:
            return self._log.order(now, now, f"it never began: {self._absence()}")
        return self._log.order(self._published_s[0], now, reason)

    def _absence(self) -> str:
        """The reason that the run has not begun."""
        present = most = 0
        for kind in self._log.kind:
            present += (kind in (o.BEGIN, o.RETURN)) - (kind == o.LEAVE)
            most = max(most, present)
        return (
            f"min_workers = {self._timing.min_workers}, and at most {most} of "
            f"{self._workers} workers were present at once in {_FOREVER_S:g} virtual s"
        )

    def schedule(self, time_s: float, handler: Handler, subject: Any) -> int:
        """Schedules an event; returns its tie, which identifies it."""
        self._tie = tie = self._tie + 1
        heappush(self._heap, (time_s, tie, handler, subject))
        return tie

    # ------------------------------------------------------------- presence

    def join(self, worker: VirtualWorker, now: float, tie: int) -> None:
        number = worker.number
        self._note(now, o.BEGIN, number, 0)
        self._live.add(number)
        worker.free_s = now
        if worker.leave_s < math.inf:
            self.schedule(worker.leave_s, self._leave, worker)
        if worker.presence is not None:
            self._look_ahead(worker, now)
        next(worker.program)  # up to its first Wait
        if worker.newest(now, self._published_s) >= 0:
            worker.due = self.schedule(now, self._waited, worker)
        else:
            self._wait(worker)
        self._send(programs.Joined(now, number), now)

    def _leave(self, worker: VirtualWorker, now: float, tie: int) -> None:
        worker.due = GONE
        worker.program.close()
        self._miss(worker, now, tie)

    def _miss(self, worker: VirtualWorker, now: float, tie: int) -> None:
        """The server's failure detector reports a worker as gone."""
        if worker.number in self._live:
            self._live.discard(worker.number)
            self._note(now, o.LEAVE, worker.number, int(worker.due == GONE))
            self._send(programs.Left(now, worker.number), now)

    def _hear(self, worker: VirtualWorker, now: float, tie: int) -> None:
        """The server receives a heartbeat of a worker again."""
        if now < worker.leave_s:
            self._live.add(worker.number)
            self._note(now, o.RETURN, worker.number, 0)
            self._send(programs.Joined(now, worker.number), now)

    def _look_again(self, worker: VirtualWorker, now: float, tie: int) -> None:
        self._looking_ahead -= 1
        self._look_ahead(worker, now)

    def _look_ahead(self, worker: VirtualWorker, now: float) -> None:
        """Schedules what the server notices of a worker's next outage."""
        assert worker.presence is not None
        begin_s, end_s = worker.presence.next_outage(now)
        begin_s = max(begin_s, now)
        if begin_s >= worker.leave_s:
            return
        is_back = end_s < worker.leave_s
        missed_s = begin_s + self._heartbeat_timeout_s
        if missed_s < end_s:
            self.schedule(missed_s, self._miss, worker)
            if is_back:
                self.schedule(end_s, self._hear, worker)
        if is_back:
            self.schedule(end_s, self._look_again, worker)
            self._looking_ahead += 1

    # ------------------------------------------------------------- a worker

    def _trained(self, worker: VirtualWorker, now: float, tie: int) -> None:
        if worker.due == tie:
            self._note(now, o.TRAIN, worker.number, worker.steps)
            self._resume(worker, now, worker.steps)

    def _waited(self, worker: VirtualWorker, now: float, tie: int) -> None:
        if worker.due == tie:
            if worker.base >= 0:
                self._note(now, o.WAITED, worker.number, 0)
            self._resume(worker, now, 0)

    def _resume(self, worker: VirtualWorker, now: float, steps: int) -> None:
        """Resumes a worker's program after `steps` steps, or after waiting, up to a
        command that takes time."""
        newest = worker.newest(now, self._published_s)  # at this time
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
        """Schedules the end of a stretch: its last step, or the batch boundary at which
        a version that is on its way will have arrived."""
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
        worker.due = self.schedule(end_s, self._trained, worker)

    def _interrupt(self, worker: VirtualWorker) -> bool:
        """Ends a stretch when the version on its way will have arrived; False if it
        ends before that."""
        boundary_s, steps = worker.boundary()
        if boundary_s >= worker.end_s or steps >= worker.steps:
            return False
        worker.steps = steps
        worker.due = self.schedule(boundary_s, self._trained, worker)
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
            self.schedule(arrival_s, self._arrive, Arrived(arrival_s, key, worker.base))

    def _wait(self, worker: VirtualWorker) -> None:
        if worker.coming < 0:
            worker.due = PARKED
            self._waiting.append(worker)
        else:
            worker.due = self.schedule(worker.arrival_s, self._waited, worker)

    # ------------------------------------------------------------- updates, versions

    def _arrive(self, arrived: Arrived, now: float, tie: int) -> None:
        worker, _, update = arrived.key
        if self._accepts is None or self._accepts(self._log, update):
            self._send(arrived, now)
            return
        self._note(now, o.REFUSE, worker, update)
        if arrived.base_version >= len(self._published_s) - 1:
            # Otherwise there is a newer version, which its worker will take in.
            self._send(programs.Failed(now, worker), now)

    def _published(self, version: int, now: float) -> None:
        self._log.receivers[version] = len(self._live)
        if self._server.ended is not None:
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
                worker.due = self.schedule(worker.arrival_s, self._waited, worker)
