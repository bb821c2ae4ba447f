"""A worker's outbox: updates in flight, until the server reports their outcome."""

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

from asyn2f.protocol import events as p
from asyn2f.protocol import messages

_WINDOW = 4  # updates in flight; one more withdraws the oldest without a receipt
_ASKED = 16  # updates that one heartbeat asks about
_MOST_PATIENCE = 4  # heartbeats without an answer, at most, before one asks


@dataclass
class Entry:
    """An update in flight."""

    update: p.UpdateReady
    sent_s: float = math.nan  # nan = to be sent
    sends: int = 0
    has_receipt: bool = False

    @property
    def patience(self) -> int:
        """Heartbeats before asking about it. The time doubles with each send, or a bad
        link would be loaded with the same update over and over."""
        if self.has_receipt:
            return 1
        return min(2 ** max(self.sends - 1, 0), _MOST_PATIENCE)

    def may_be_answered(self, now: float, interval_s: float) -> bool:
        """Whether it has been sent, and an answer may still arrive."""
        waits_s = now - self.sent_s  # nan = to be sent: no
        return not self.has_receipt and waits_s <= self.patience * interval_s


class Outbox:
    """Numbers updates, resends them, and selects those to ask about."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}  # by number, ascending
        self._next = 0
        self._asked = -1  # the last one that was asked about

    def begin(self, first: int) -> None:
        """The first number, as assigned by a server."""
        self._next = max(self._next, first)

    @property
    def settled_below(self) -> int:
        """The outcomes of all updates with smaller numbers are known."""
        return min(self.entries, default=self._next)

    def add(self, update: p.UpdateReady) -> int:
        """Adds an update, to be sent; returns its number."""
        seq, self._next = self._next, self._next + 1
        self.entries[seq] = Entry(update)
        return seq

    def surplus(self) -> int | None:
        """The update to withdraw if there are too many: the oldest without a receipt,
        unless that is the newest of all."""
        unseen = [seq for seq, entry in self.entries.items() if not entry.has_receipt]
        is_full = len(self.entries) > _WINDOW and unseen[0] != self._next - 1
        return unseen[0] if is_full else None

    def acknowledge(self, seq: int) -> None:
        """The server has received an update."""
        if seq in self.entries:
            self.entries[seq].has_receipt = True

    def resend(self, seq: int) -> None:
        """The server does not have an update, or not yet room for it."""
        if seq in self.entries:
            self.entries[seq].sent_s = math.nan

    def unsend(self, seq: int) -> None:
        """The transport had no room for an update."""
        if seq in self.entries:
            self.entries[seq].sent_s = math.nan
            self.entries[seq].sends -= 1

    def resend_all(self) -> None:
        """Another server does not know any of them."""
        for entry in self.entries.values():
            entry.sent_s, entry.sends, entry.has_receipt = math.nan, 0, False

    def take_unsent(self, now: float, interval_s: float) -> Iterator[int]:
        """Marks updates as sent and yields their numbers. Those that are sent again go
        one by one: a link that breaks loses all that is in flight."""
        for seq, entry in self.entries.items():
            if not math.isnan(entry.sent_s):
                continue
            others = self.entries.values()
            if entry.sends and any(x.may_be_answered(now, interval_s) for x in others):
                continue
            entry.sent_s = now
            entry.sends += 1
            yield seq

    def overdue(self, now: float, interval_s: float) -> tuple[int, ...]:
        """Updates to ask about. Where one heartbeat has no room for all, they take
        turns: the server may have a reason not to settle the oldest yet."""
        overdue = [
            seq
            for seq, entry in self.entries.items()
            if now - entry.sent_s > entry.patience * interval_s
        ]
        if len(overdue) > _ASKED:
            place = bisect.bisect(overdue, self._asked)
            overdue = (overdue[place:] + overdue[:place])[:_ASKED]
            self._asked = overdue[-1]
        return tuple(overdue)


def header_of(
    update: p.UpdateReady,
    seq: int,
    hello: messages.Hello,
    welcome: messages.Welcome,
) -> messages.UpdateHeader:
    """The header of an update for the server that is followed."""
    return messages.UpdateHeader(
        run=welcome.run,
        incarnation=welcome.incarnation,
        worker=hello.worker,
        session=hello.session,
        seq=seq,
        info=update.info,
        fingerprint=update.fingerprint,
        num_bytes=update.num_bytes,
        digest=update.digest,
        base=update.base,
    )
