"""How updates come in: looked at, counted once, and answered until they are settled."""

from asyn2f import trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.admission import Admission
from asyn2f.protocol.ledger import Ledger, Verdict
from asyn2f.protocol.sessions import Session, SessionRegistry
from asyn2f.types import Buffer

# Far above any loss of a model that still learns, and far below where float32 ends:
# what an aggregation makes of losses stays a number.
_MOST = 1e20
_MAX_STEP = 2**31  # they become int32


class UpdateIntake:
    """The server's desk for updates: `receive`, then `checked`, in the end `settle`."""

    def __init__(
        self,
        run: str,
        incarnation: int,
        replaces: bool,
        admission: Admission,
        ledger: Ledger,
        roster: SessionRegistry,
        outlet: p.EffectQueue,
    ) -> None:
        self._run = run
        self._incarnation = incarnation
        self._replaces = replaces
        self._admission = admission
        self._ledger = ledger
        self._roster = roster
        self._outlet = outlet
        self._bases: dict[UpdateKey, int] = {}  # base versions of what is unsettled

    def receive(
        self,
        header: messages.UpdateHeader,
        payload: Buffer,
        version: int,
        closed: str,
    ) -> tuple[UpdateKey, str] | None:
        """Takes in an update; which it is and what forbids it, if that is known at
        once.

        Args:
          header: as it came.
          payload: not looked at here.
          version: the newest.
          closed: why no update is taken in any more, if that is so.
        """
        session = self._roster.get(header.session)
        if session is None or not session.is_worker:
            return None  # nobody to tell; its next beat will be asked who it is
        worker, name, seq = session.hello.worker, header.session, header.seq
        if seq < session.first or self._ledger.is_ahead(worker, seq):
            # Of a life of that name which is over: another one's numbers begin later.
            why = f"update {seq}, its numbers are {session.first} and above"
            self._outlet.do(p.Send(session.peer, messages.Refused(why, retry=False)))
            return None
        key = UpdateKey(worker, name, seq)
        if self._ledger.is_known(name, seq):
            self.answer(session, seq)
            return None
        overtaken = self._replaces and self._ledger.is_overtaken(name, seq)
        problem = closed or self._problem(session, header, version)
        if not closed:
            num_open, now = self._ledger.num_open(name), self._outlet.now
            wait_s = self._admission.wait_s(name, num_open, not problem, now)
            if wait_s:
                busy = messages.Backoff(name, seq, wait_s)
                self._outlet.do(p.Send(session.peer, busy))
                return None
        self._ledger.take_in(key)
        if problem:
            self.settle(key, Verdict("rejected", -1, problem))
            if session.replaced:  # nobody waits for anything of it
                return None
        elif overtaken:
            self.settle(key, Verdict("superseded", -1, "a newer one came first"))
        else:
            self._bases[key] = header.info.base_version
            self.answer(session, header.seq)
            self._outlet.do(p.ValidateUpdate(key, header, payload))
        return (key, problem) if problem else None

    def base_of(self, key: UpdateKey) -> int | None:
        """The base version of an update; None if it has been settled."""
        return self._bases.get(key)

    def checked(self, key: UpdateKey, problem: str) -> bool:
        """Whether an update that has been looked at may be used: it has been found
        good, and has not been settled in the meantime."""
        is_open = key in self._bases
        if is_open and problem:
            self.settle(key, Verdict("rejected", -1, problem))
        return is_open and not problem

    def settle(self, key: UpdateKey, verdict: Verdict) -> None:
        """The last word on an update: written, and told to its worker."""
        self._ledger.settle(key, verdict)
        self._bases.pop(key, None)
        settled = trace.UpdateSettled(self._outlet.now, *key, *verdict)
        self._outlet.do(p.RecordEvent(settled), p.DropUpdate(key))
        session = self._roster.get(key.session)
        if session is not None:
            self.answer(session, key.seq)

    def settle_all(self, but: frozenset[UpdateKey], verdict: Verdict) -> None:
        """The same for all that are unsettled, but those."""
        for key in sorted(self._ledger.unsettled() - but):
            self.settle(key, verdict)

    def end(self, session: str) -> bool:
        """Closes the account of a session that will not come back, if all of it
        is settled; whether it is closed."""
        if self._ledger.num_open(session):
            return False
        self._ledger.end(session)
        self._admission.forget(session)
        return True

    def answer(self, session: Session, seq: int) -> None:
        """Tells a worker how an update stands; if it is not here, to send it again."""
        name, verdict = session.name, self._ledger.verdict(session.name, seq)
        message: messages.Message
        if verdict is not None:
            message = messages.UpdateOutcome(self._incarnation, name, seq, *verdict)
        elif self._ledger.is_known(name, seq):
            message = messages.UpdateReceived(name, seq)
        else:
            message = messages.Resend(name, seq)
        self._outlet.do(p.Send(session.peer, message))

    def _problem(
        self, session: Session, header: messages.UpdateHeader, version: int
    ) -> str:
        """What forbids this update, as far as its header shows; or nothing."""
        hello, info = session.hello, header.info
        if session.replaced:
            return f"another process is worker {hello.worker} now"
        if header.run != self._run:
            return f"of run {header.run}, this is {self._run}"
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
        if not (all(abs(value) <= _MOST for value in info) and info.loss >= 0):
            numbers = f"loss {info.loss}, metric {info.metric}, signal {info.signal}"
            return f"{numbers}: has training diverged?"
        return ""
