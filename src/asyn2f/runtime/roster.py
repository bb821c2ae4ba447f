"""Who is here: the server's register of its peers' processes."""

from collections.abc import Iterator
from dataclasses import dataclass

from asyn2f.runtime import wire
from asyn2f.status import WorkerStatus

_SHOWN = 20  # characters of what a peer says it does


@dataclass
class Session:
    """One life of one peer's process."""

    hello: wire.Hello
    peer: bytes  # where to reach it now
    heard_s: float
    live: bool = True
    gone: bool = False  # it has said goodbye
    replaced: bool = False  # another process has its worker's number now
    welcomed: bool = False
    hears_models: bool = False
    beat: wire.Beat | None = None

    @property
    def name(self) -> str:
        return self.hello.session

    @property
    def is_worker(self) -> bool:
        return self.hello.role == "worker"

    @property
    def actor(self) -> str:
        """Who its process is: "worker-3", "evaluator"."""
        return self.hello.actor

    @property
    def may_come_back(self) -> bool:
        """Whether it is a worker that has fallen silent without a goodbye."""
        return self.is_worker and not (self.live or self.gone or self.replaced)


class Roster:
    """Sessions by name; admits, remembers when each was heard, notices silence."""

    def __init__(
        self,
        experiment: str,
        fingerprint: str,
        coding: str,
        workers: int,
        shards: tuple[tuple[int, float], ...],
        dead_after_s: float,
    ) -> None:
        self._experiment = experiment
        self._fingerprint = fingerprint
        self._coding = coding
        self._workers = workers
        self._shards = shards
        self._dead_after_s = dead_after_s
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, name: str) -> Session | None:
        return self._sessions.get(name)

    def live_workers(self) -> list[Session]:
        return [s for s in self if s.live and s.is_worker]

    def refusal(self, hello: wire.Hello) -> wire.Refused | None:
        """Why this peer cannot come in, or nothing."""

        def no(reason: str, retry: bool = False) -> wire.Refused:
            return wire.Refused(reason, retry)

        if hello.protocol != wire.PROTOCOL:
            return no(f"protocol {hello.protocol}, the server speaks {wire.PROTOCOL}")
        if hello.role not in ("worker", "evaluator"):
            return no(f"role {hello.role[:20]!r}, allowed: worker, evaluator")
        if hello.fingerprint != self._fingerprint:
            return no("its model has other arrays than the server's")
        if hello.coding != self._coding:
            return no(
                f"config.wire is {hello.coding[:50]}; the server's {self._coding}"
            )
        if hello.experiment != self._experiment:
            return no(
                "its config differs from the server's in task, strategy or training"
            )
        if hello.role == "evaluator":
            return None
        known = self.get(hello.session)
        if known is not None and known.replaced:
            return no(f"another process is worker {hello.worker} now")
        if not 0 <= hello.worker < self._workers:
            return no(
                f"worker {hello.worker}, the data is cut for 0..{self._workers - 1}"
            )
        if not (hello.num_examples > 0 and 0 < hello.quality <= 1):
            return no(f"{hello.num_examples} examples of quality {hello.quality}")
        said = hello.num_examples, hello.quality
        if self._shards and said != self._shards[hello.worker]:
            examples, quality = self._shards[hello.worker]
            return no(
                f"{said[0]} examples of quality {said[1]}, by the config "
                f"worker {hello.worker} has {examples} of {quality}"
            )
        for other in self.live_workers():
            if other.hello.worker == hello.worker and other.name != hello.session:
                return no(f"a worker {hello.worker} is here already", retry=True)
        return None

    def admit(self, hello: wire.Hello, peer: bytes, now: float) -> Session:
        """The session of a peer that was not refused: a new one, or the one it had."""
        session = self._sessions.setdefault(hello.session, Session(hello, peer, now))
        for other in self:
            is_older = other is not session and other.hello.worker == hello.worker
            if is_older and other.is_worker and session.is_worker:
                other.replaced, other.live = True, False
        session.peer, session.heard_s = peer, now
        return session

    def hear(self, session: Session, peer: bytes, now: float) -> bool:
        """Notes a sign of life; whether it comes after a silence."""
        was_live, session.live = session.live, True
        session.peer, session.heard_s = peer, now
        return not was_live

    def fall_silent(self, now: float) -> list[Session]:
        """Those who have not been heard of for too long, and were until now."""
        silent = [s for s in self if s.live and now - s.heard_s > self._dead_after_s]
        for session in silent:
            session.live = False
        return silent

    def obsolete(self) -> list[Session]:
        """Those that will not come back and that nobody needs to see: replaced ones,
        and evaluators that have gone or fallen silent."""
        return [s for s in self if s.replaced or not (s.is_worker or s.live)]

    def drop(self, session: Session) -> None:
        """Knows it no longer."""
        del self._sessions[session.name]

    def part(self, session: Session) -> bool:
        """Notes that it has said goodbye; whether it was live until now."""
        was_live, session.live = session.live, False
        session.gone, session.hears_models = True, False
        return was_live

    def worker_statuses(
        self, version: int, updates: dict[str, int], now: float
    ) -> tuple[WorkerStatus, ...]:
        """Each worker as of its last beat; of one that came again, its last life."""
        latest: dict[int, Session] = {}
        for session in self:
            if session.is_worker:
                latest[session.hello.worker] = session
        return tuple(
            _status_of(session, version, updates.get(session.name, 0), now)
            for _, session in sorted(latest.items())
        )


def _status_of(
    session: Session, version: int, updates: int, now: float
) -> WorkerStatus:
    hello, beat = session.hello, session.beat
    if beat is None:
        state = "registered" if session.live else "silent"
        beat = wire.Beat("", 0, state, 0, 0.0, 0.0, 0.0, -1, -1, 0, -1.0, 0, ())
    state = beat.state[:_SHOWN]
    merged_s_ago = beat.merged_s_ago
    if merged_s_ago >= 0:
        merged_s_ago += now - session.heard_s
    return WorkerStatus(
        worker=hello.worker,
        state="gone" if session.gone else state if session.live else "silent",
        step=beat.step,
        epoch=beat.epoch,
        loss=beat.loss,
        metric=beat.metric,
        base_version=beat.base_version,
        staleness=max(version - beat.base_version, 0) if beat.base_version >= 0 else 0,
        merges=beat.merges,
        merged_s_ago=merged_s_ago,
        updates=updates,
        num_examples=hello.num_examples,
    )
