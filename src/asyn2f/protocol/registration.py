"""Who may come in: the server's answer to a `Hello`."""

import hmac

from asyn2f.protocol import messages
from asyn2f.protocol.admission import Bucket
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import SessionRegistry
from asyn2f.protocol.settings import ServerSettings

_LIVES_PER_S, _LIVES_AT_ONCE = 0.5, 8.0  # new processes of one peer
_MOST_NAMED = 5  # settings that differ


class Registration:
    """Compares what a peer says of itself with what its server expects."""

    def __init__(
        self, settings: ServerSettings, roster: SessionRegistry, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._roster = roster
        self._ledger = ledger
        self._lives = Bucket(_LIVES_PER_S, _LIVES_AT_ONCE)

    def refusal(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> messages.Refused | None:
        """Why this peer cannot come in, or None.

        Args:
          hello: as it came.
          peer: the connection that it came over.
          identity: whose key that is; "" = there are no keys.
          now: monotonic seconds.
        """
        reason = (
            self._of_its_program(hello)
            or self._of_its_name(hello, identity)
            or self._of_its_settings(hello)
        )
        if reason:
            return messages.Refused(reason, retry=False)
        reason = self._of_others(hello, peer, identity, now)
        return messages.Refused(reason, retry=True) if reason else None

    def _of_its_program(self, hello: messages.Hello) -> str:
        if hello.protocol != messages.PROTOCOL:
            return f"protocol {hello.protocol}, the server speaks {messages.PROTOCOL}"
        if hello.role not in ("worker", "evaluator"):
            return f"role {hello.role[:20]!r}, allowed: worker, evaluator"
        return ""

    def _of_its_name(self, hello: messages.Hello, identity: str) -> str:
        """What is wrong with who it says it is."""
        if identity not in ("", hello.actor):
            return f"it says it is {hello.actor[:20]}, its key is {identity}'s"
        workers = self._settings.workers
        if hello.role == "worker" and not 0 <= hello.worker < workers:
            return f"worker {hello.worker}, the data is cut for 0..{workers - 1}"
        if hello.role == "evaluator" and hello.worker != -1:
            return f"an evaluator of number {hello.worker}, allowed: -1"
        known = self._roster.get(hello.session)
        owner = self._ledger.owner(hello.session)
        is_anothers = owner is not None and owner != hello.worker
        if is_anothers or (known is not None and known.actor != hello.actor):
            return "its session belongs to another peer"
        is_past = hello.role == "worker" and self._ledger.is_past(
            hello.worker, hello.session, hello.first
        )
        if is_past or (known is not None and known.replaced):
            return f"another process is worker {hello.worker} now"
        return ""

    def _of_its_settings(self, hello: messages.Hello) -> str:
        """What its numbers would come about otherwise by."""
        settings = self._settings
        differs = differences(hello.terms, settings.terms)
        if differs:
            return f"its settings differ from the server's: {differs}"
        if hello.fingerprint != settings.fingerprint:
            return "its model has other arrays than the server's"
        if hello.coding != settings.coding:
            return f"config.wire is {hello.coding[:50]}; the server's {settings.coding}"
        if hello.role == "worker":
            said = hello.num_examples, hello.quality
            if not (hello.num_examples > 0 and 0 < hello.quality <= 1):
                return f"{said[0]} examples of quality {said[1]}"
            if settings.shards and said != settings.shards[hello.worker]:
                examples, quality = settings.shards[hello.worker]
                return (
                    f"{said[0]} examples of quality {said[1]}, by the config "
                    f"worker {hello.worker} has {examples} of {quality}"
                )
        # Of the evaluator, whose number is -1, the last.
        if settings.data and hello.data != settings.data[hello.worker]:
            whose = f"{hello.actor}'s data" if hello.worker >= 0 else "the test data"
            return (
                f"{whose} are others than the server's: digest {hello.data[:32]}, "
                f"there {settings.data[hello.worker]}; are data set, partition file "
                "and task the same on both machines?"
            )
        return ""

    def _of_others(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> str:
        """Who or what is in its way for the moment."""
        token = self._settings.token
        is_known = hmac.compare_digest(hello.token.encode(), token.encode())
        if token and not is_known:
            # It may have read what the server before this one has left there.
            return (
                "it does not present this run's token: without keys, give it the "
                "server's --workdir, where server.json holds the token"
            )
        known = self._roster.get(hello.session)
        if known is not None:
            if self._roster.is_held(known, peer, identity, now):
                return "its session is spoken in over another connection"
            return ""
        for other in self._roster:
            if other.live and other.actor == hello.actor:
                who = "an evaluator" if hello.worker < 0 else f"a worker {hello.worker}"
                return f"{who} is here already"
        if self._lives.wait_s(hello.actor, now):
            return f"too many processes have registered as {hello.actor} just now"
        return ""


def differences(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """Which settings differ, with both values; "" = none.

    >>> differences(("a=1", "b=2"), ("a=1", "b=3", "c=4"))
    'b is 2, there 3; c is not set, there 4'
    """
    mine = dict(term.partition("=")[::2] for term in theirs)
    its = dict(term.partition("=")[::2] for term in ours)
    keys = [k for k in sorted(mine.keys() | its.keys()) if mine.get(k) != its.get(k)]
    unset = "not set"
    said = [
        f"{key} is {mine.get(key, unset)}, there {its.get(key, unset)}"
        for key in keys[:_MOST_NAMED]
    ]
    rest = len(keys) - len(said)
    return "; ".join(said) + (f"; and {rest} more" if rest else "")
