"""Update intake: admission, validation, deduplication, acknowledgement."""

from asyn2f import trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.admission import Bucket
from asyn2f.protocol.ledger import Ledger, Outcome
from asyn2f.protocol.sessions import Session, SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.types import Buffer

# Far above any loss of a model that still learns, and far below the limit of float32:
# an aggregation of such losses stays finite.
_MAX_VALUE = 1e20
_MAX_STEP = 2**31  # they become int32
# Updates whose header is invalid: each costs an entry in the trace.
_INVALID_PER_S, _INVALID_BURST = 2.0, 20.0


class UpdateIntake:
    """An update is received (`receive`), validated (`validated`) and settled once
    (`settle`); its outcome is sent as often as its worker asks (`answer`)."""

    def __init__(
        self,
        settings: ServerSettings,
        ledger: Ledger,
        sessions: SessionRegistry,
        effects: p.EffectQueue,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._sessions = sessions
        self._effects = effects
        per_s = settings.runtime.max_updates_per_s
        self._pushes = Bucket(per_s, max(1.0, 2.0 * per_s)) if per_s else None
        self._invalid = Bucket(_INVALID_PER_S, _INVALID_BURST)

    def receive(
        self,
        header: messages.UpdateHeader,
        payload: Buffer,
        version: int,
        closed: str,
    ) -> tuple[UpdateKey, str] | None:
        """Admits an update, or rejects it by its header.

        Args:
          header: as it came.
          payload: not decoded here.
          version: the newest published.
          closed: the reason if no update is accepted any more, or "".

        Returns:
          The key and the reason of an update that is rejected, else None.
        """
        session = self._sessions.get(header.session)
        if session is None or not session.is_worker:
            return None  # its next heartbeat is answered with `UnknownSession`
        worker, name, seq = session.hello.worker, header.session, header.seq
        if seq < session.first or self._ledger.is_ahead(worker, seq):
            # Of an earlier process with this session: the numbers of others are higher.
            why = f"update {seq}, its numbers are {session.first} and above"
            self._effects.do(p.Send(session.peer, messages.Refused(why, retry=False)))
            return None
        key = UpdateKey(worker, name, seq)
        if self._ledger.is_known(name, seq):
            self.answer(session, seq)
            return None
        replaces = self._settings.replaces
        overtaken = replaces and self._ledger.is_overtaken(name, seq)
        problem = closed or self._problem(session, header, version)
        if not closed:
            wait_s = self._backoff_s(name, not problem)
            if wait_s:
                backoff = messages.Backoff(name, seq, wait_s)
                self._effects.do(p.Send(session.peer, backoff))
                return None
        self._ledger.add(key, header.info.base_version)
        if problem:
            self.settle(key, Outcome("rejected", -1, problem))
            if session.replaced:  # its worker does not wait for a version
                return None
        elif overtaken:
            self.settle(key, Outcome("superseded", -1, "a newer one came first"))
        else:
            self.answer(session, header.seq)
            self._effects.do(p.ValidateUpdate(key, header, payload))
        return (key, problem) if problem else None

    def validated(self, key: UpdateKey, problem: str) -> bool:
        """Whether an update is valid, and still unsettled. Rejects an invalid one."""
        is_open = self._ledger.base_of(key) is not None
        if is_open and problem:
            self.settle(key, Outcome("rejected", -1, problem))
        return is_open and not problem

    def settle(self, key: UpdateKey, outcome: Outcome) -> None:
        """Records the outcome of an update, and sends it to its worker."""
        self._ledger.settle(key, outcome)
        settled = trace.UpdateSettled(self._effects.now, *key, *outcome)
        self._effects.do(p.RecordEvent(settled), p.DropUpdate(key))
        session = self._sessions.get(key.session)
        if session is not None:
            self.answer(session, key.seq)

    def settle_all(self, but: frozenset[UpdateKey], outcome: Outcome) -> None:
        """Settles all unsettled updates but those."""
        for key in sorted(self._ledger.unsettled() - but):
            self.settle(key, outcome)

    def end(self, session: str) -> bool:
        """Forgets a session that has ended, unless it has unsettled updates; returns
        whether it is forgotten."""
        if self._ledger.num_open(session):
            return False
        self._ledger.end(session)
        self._invalid.forget(session)
        if self._pushes is not None:
            self._pushes.forget(session)
        return True

    def answer(self, session: Session, seq: int) -> None:
        """Sends a worker the state of an update; of an unknown one, a `Resend`."""
        name, outcome = session.name, self._ledger.outcome(session.name, seq)
        message: messages.Message
        if outcome is not None:
            incarnation = self._settings.incarnation
            message = messages.UpdateOutcome(incarnation, name, seq, *outcome)
        elif self._ledger.is_known(name, seq):
            message = messages.UpdateReceived(name, seq)
        else:
            message = messages.Resend(name, seq)
        self._effects.do(p.Send(session.peer, message))

    def _backoff_s(self, session: str, is_valid: bool) -> float:
        """Admits an update and returns 0, or returns its backoff in seconds. Updates
        with an invalid header have a limit of their own."""
        settings, now = self._settings, self._effects.now
        if is_valid and self._ledger.num_open(session) >= settings.most_open:
            return settings.runtime.heartbeat_interval_s
        wait_s = 0.0 if is_valid else self._invalid.wait_s(session, now)
        if self._pushes is not None and not wait_s:
            wait_s = self._pushes.wait_s(session, now)
        return wait_s

    def _problem(
        self, session: Session, header: messages.UpdateHeader, version: int
    ) -> str:
        """Why the header of an update is invalid, or ""."""
        hello, info, run = session.hello, header.info, self._settings.run
        if session.replaced:
            return f"another process is worker {hello.worker} now"
        if header.run != run:
            return f"of run {header.run}, this is {run}"
        if header.worker != hello.worker:
            return f"from worker {header.worker} in worker {hello.worker}'s session"
        if not 0 <= info.start_version <= info.base_version <= version:
            return f"base version {info.base_version} is not in 0..{version}"
        if not 0 <= info.step < _MAX_STEP:
            return f"step {info.step} is not in 0..{_MAX_STEP - 1}"
        if info.num_examples != hello.num_examples:
            return f"{info.num_examples} examples, registered {hello.num_examples}"
        if info.quality != hello.quality:
            return f"quality {info.quality}, registered {hello.quality}"
        if not (all(abs(value) <= _MAX_VALUE for value in info) and info.loss >= 0):
            numbers = f"loss {info.loss}, metric {info.metric}, signal {info.signal}"
            return f"{numbers}: has training diverged?"
        return ""
