"""Admission control: the conditions of registration, and rate limits."""

import hmac
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from asyn2f.protocol import messages
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import SessionRegistry
from asyn2f.protocol.settings import ServerSettings

_REPEAT_S = 60.0
_MAX_WARNINGS = 32  # different texts within that time
_LIVES_PER_S, _LIVES_BURST = 0.5, 8.0  # new processes of one peer
_MOST_NAMED = 5  # settings that differ


@dataclass
class Bucket:
    """Token buckets: a rate limit with a burst, for each key.

    >>> bucket = Bucket(per_s=1.0, burst=2.0)
    >>> [bucket.wait_s("a", now) for now in (0.0, 0.0, 0.0, 0.75, 1.0)]
    [0.0, 0.0, 1.0, 0.25, 0.0]
    """

    per_s: float
    burst: float
    _tokens: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, key: str, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds until there is one."""
        tokens, since = self._tokens.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self.per_s)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self.per_s
        self._tokens[key] = (tokens if wait_s else tokens - 1.0, now)
        return wait_s

    def forget(self, key: str) -> None:
        self._tokens.pop(key, None)


class WarningLimit:
    """Passes each warning once a minute, and a bounded number of different ones: peers
    can cause as many as they like.

    >>> limit = WarningLimit()
    >>> [limit.passes("no", now) for now in (0.0, 59.0, 60.0)]
    [True, False, True]
    """

    def __init__(self) -> None:
        self._passed_s: dict[str, float] = {}  # in the order of their times

    def passes(self, text: str, now: float) -> bool:
        for old in [x for x, at in self._passed_s.items() if now >= at + _REPEAT_S]:
            del self._passed_s[old]
        if text in self._passed_s or len(self._passed_s) >= _MAX_WARNINGS:
            return False
        self._passed_s[text] = now
        return True


class Pin(NamedTuple):
    """What a worker has reported of its own data."""

    num_examples: int
    quality: float
    digest: str


def check_pins(stored: Any) -> None:
    """Raises ValueError unless these are pins as `Registration.pins` has them."""
    try:
        found = _pins_of(stored)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"invalid pins of data: {error!r}") from None
    for worker, pin in found.items():
        if worker < 0 or [*map(type, pin)] != [int, float, str]:
            raise ValueError(f"invalid pin of the data of worker {worker}: {pin}")


def _pins_of(stored: dict[str, list[Any]]) -> dict[int, Pin]:
    return {int(worker): Pin(*pin) for worker, pin in stored.items()}


class Registration:
    """Validates a `Hello` against the settings of the run."""

    def __init__(
        self, settings: ServerSettings, sessions: SessionRegistry, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._ledger = ledger
        self._lives = Bucket(_LIVES_PER_S, _LIVES_BURST)
        self._pinned = _pins_of(settings.accounting.get("data", {}))

    def pin(self, hello: messages.Hello) -> None:
        """Ties a worker that was not refused to the data it has registered with."""
        if self._settings.most_examples and hello.role == "worker":
            own = Pin(hello.num_examples, hello.quality, hello.data)
            self._pinned.setdefault(hello.worker, own)

    def pins(self) -> dict[str, Any]:
        """What each worker has registered with, as "data" in the record of a version;
        {} unless their data are their own."""
        pinned = {str(worker): [*pin] for worker, pin in self._pinned.items()}
        return {"data": pinned} if pinned else {}

    def refusal(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> messages.Refused | None:
        """The refusal of a peer, or None.

        Args:
          hello: as it came.
          peer: the connection that it came over.
          identity: the authenticated name of the peer; "" without keys.
          now: monotonic seconds.
        """
        reason = (
            self._protocol_problem(hello)
            or self._identity_problem(hello, identity)
            or self._settings_problem(hello)
        )
        if reason:
            return messages.Refused(reason, retry=False)
        reason = self._conflict(hello, peer, identity, now)
        return messages.Refused(reason, retry=True) if reason else None

    def _protocol_problem(self, hello: messages.Hello) -> str:
        if hello.protocol != messages.PROTOCOL:
            return f"protocol {hello.protocol}, the server speaks {messages.PROTOCOL}"
        if hello.role not in ("worker", "evaluator"):
            return f"role {hello.role[:20]!r}, allowed: worker, evaluator"
        return ""

    def _identity_problem(self, hello: messages.Hello, identity: str) -> str:
        if identity not in ("", hello.actor):
            return f"it registers as {hello.actor[:20]}, its key is {identity}'s"
        workers = self._settings.workers
        if hello.role == "worker" and not 0 <= hello.worker < workers:
            return f"worker {hello.worker}, the data is cut for 0..{workers - 1}"
        if hello.role == "evaluator" and hello.worker != -1:
            return f"an evaluator of number {hello.worker}, allowed: -1"
        known = self._sessions.get(hello.session)
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

    def _settings_problem(self, hello: messages.Hello) -> str:
        """What would make its numbers differ."""
        settings = self._settings
        differs = differences(hello.terms, settings.terms)
        if differs:
            return f"its settings differ from the server's: {differs}"
        if hello.fingerprint != settings.fingerprint:
            return "its model has other arrays than the server's"
        if hello.coding != settings.coding:
            return f"config.wire is {hello.coding[:50]}; the server's {settings.coding}"
        if hello.role == "worker":
            given = hello.num_examples, hello.quality
            if not (hello.num_examples > 0 and 0 < hello.quality <= 1) or (
                hello.held_out < 0
            ):
                return f"{given[0]} examples of quality {given[1]}"
            if settings.shards and given != settings.shards[hello.worker]:
                examples, quality = settings.shards[hello.worker]
                return (
                    f"{given[0]} examples of quality {given[1]}, by the config "
                    f"worker {hello.worker} has {examples} of {quality}"
                )
            if problem := self._own_data_problem(hello):
                return problem
        # The evaluator's number is -1, and its digest the last.
        if settings.data and hello.data != (settings.data[hello.worker] or hello.data):
            whose = f"{hello.actor}'s data" if hello.worker >= 0 else "the test data"
            return (
                f"{whose} are others than the server's: digest {hello.data[:32]}, "
                f"there {settings.data[hello.worker]}; are data set, partition file "
                "and task the same on both machines?"
            )
        return ""

    def _own_data_problem(self, hello: messages.Hello) -> str:
        """What is wrong with data that the worker alone has."""
        most, pin = self._settings.most_examples, self._pinned.get(hello.worker)
        if most and max(hello.num_examples, hello.held_out) > most:
            return (
                f"{hello.num_examples} examples, allowed: at most {most}, which is "
                "config.privacy.max_examples"
            )
        found = Pin(hello.num_examples, hello.quality, hello.data)
        if not most or pin is None or pin == found:
            return ""
        return (
            f"the data of worker {hello.worker} differ from those that it first "
            f"registered with: {_in_words(found)}, then {_in_words(pin)}; start it "
            "with those, or start another run"
        )

    def _conflict(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> str:
        """Why it cannot register at present."""
        token = self._settings.token
        is_known = hmac.compare_digest(hello.token.encode(), token.encode())
        if token and not is_known:
            # It may have read the token of an earlier server; then it tries again.
            return (
                "it does not present this run's token: without keys, give it the "
                "server's --workdir, where server.json holds the token"
            )
        known = self._sessions.get(hello.session)
        if known is not None:
            if self._sessions.is_held(known, peer, identity, now):
                return "its session is spoken in over another connection"
            return ""
        for other in self._sessions:
            if other.live and other.actor == hello.actor:
                who = "an evaluator" if hello.worker < 0 else f"a worker {hello.worker}"
                return f"{who} is here already"
        if self._lives.wait_s(hello.actor, now):
            return f"too many processes have registered as {hello.actor} just now"
        return ""


def _in_words(pin: Pin) -> str:
    examples, quality, digest = pin
    return f"{examples} examples of quality {quality:g}, digest {digest[:32]}"


def differences(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """The settings that differ, with both values, in words.

    >>> differences(("a=1", "b=2"), ("a=1", "b=3", "c=4"))
    'b is 2, there 3; c is not set, there 4'
    """
    mine = dict(term.partition("=")[::2] for term in theirs)
    its = dict(term.partition("=")[::2] for term in ours)
    keys = [k for k in sorted(mine.keys() | its.keys()) if mine.get(k) != its.get(k)]
    unset = "not set"
    found = [
        f"{key} is {mine.get(key, unset)}, there {its.get(key, unset)}"
        for key in keys[:_MOST_NAMED]
    ]
    rest = len(keys) - len(found)
    return "; ".join(found) + (f"; and {rest} more" if rest else "")
