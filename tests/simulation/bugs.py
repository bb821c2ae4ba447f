"""Mutation tests of the simulation: classic errors that it has to find.

Each is a patch of one function, and a world in which it matters; the number of seeds
until it is found measures the simulation.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from asyn2f import programs
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.peer import PeerProtocol
from asyn2f.protocol.pipeline import VersionPipeline
from asyn2f.protocol.server_link import ServerLink
from asyn2f.protocol.shutdown import StallDetector
from asyn2f.protocol.updates import UpdateIntake
from tests.simulation import network as net_module
from tests.simulation.disk import Disk
from tests.simulation.world import ENDLESS, TIMINGS, Fault, World, draw_world

Patch = pytest.MonkeyPatch


def _publish_before_the_save(patch: Patch) -> None:
    def init(self: Any, program: Any, first: Any, _: Any, replaces: bool) -> None:
        original(self, program, first, "before_save", replaces)

    original = VersionPipeline.__init__
    patch.setattr(VersionPipeline, "__init__", init)


def _ledger_not_in_the_checkpoint(patch: Patch) -> None:
    patch.setattr(Ledger, "snapshot", lambda *_: {})


def _accounting_of_a_damaged_version(patch: Patch) -> None:
    """A server resumes from the version before a damaged one, with the accounting of
    the damaged one."""

    def set_aside(self: Disk) -> None:
        damaged = self.newest
        original(self)
        newest = max(self.kept)
        self.kept[newest] = self.newest._replace(accounting=damaged.accounting)

    original = Disk.set_aside_newest
    patch.setattr(Disk, "set_aside_newest", set_aside)


def _replace_on_control(
    patch: Patch, hear: Callable[[PeerProtocol, messages.Message], bool]
) -> None:
    """Peers call `hear` first; where it returns False, they proceed as before."""

    def on_control(self: PeerProtocol, message: messages.Message) -> None:
        if not hear(self, message):
            original(self, message)

    original = PeerProtocol._on_control
    patch.setattr(PeerProtocol, "_on_control", on_control)


def _receipt_is_final(patch: Patch) -> None:
    def hear(self: PeerProtocol, message: messages.Message) -> bool:
        if isinstance(message, messages.UpdateReceived):
            self._outbox.entries.pop(message.seq, None)
        return False

    _replace_on_control(patch, hear)


def _second_update_overwrites_the_first(patch: Patch) -> None:
    def settle(self: UpdateIntake, key: programs.UpdateKey, outcome: Any) -> None:
        if outcome.reason != "replaced by a newer":
            original(self, key, outcome)

    original = UpdateIntake.settle
    patch.setattr(UpdateIntake, "settle", settle)


def _session_missing_from_the_key(patch: Patch) -> None:
    patch.setattr(net_module, "session_of", lambda worker, _: f"{worker}")


def _resend_under_a_new_number(patch: Patch) -> None:
    def hear(self: PeerProtocol, message: messages.Message) -> bool:
        outbox = self._outbox
        if isinstance(message, messages.Resend) and message.seq in outbox.entries:
            outbox.add(outbox.entries.pop(message.seq).update)
        return isinstance(message, messages.Resend)

    _replace_on_control(patch, hear)


def _base_version_unchecked(patch: Patch) -> None:
    def problem(self: UpdateIntake, *args: Any) -> str:
        found = original(self, *args)
        return "" if found.startswith("base version") else found

    original = UpdateIntake._problem
    patch.setattr(UpdateIntake, "_problem", problem)


def _older_version_accepted(patch: Patch) -> None:
    def on_model(
        self: PeerProtocol, header: messages.ModelHeader, payload: Any
    ) -> None:
        self._newest = min(self._newest, header.version - 1)
        original(self, header, payload)

    original = PeerProtocol._on_model
    patch.setattr(PeerProtocol, "_on_model", on_model)


def _unknown_session_ignored(patch: Patch) -> None:
    _replace_on_control(
        patch, lambda _, message: isinstance(message, messages.UnknownSession)
    )


def _no_deadline(patch: Patch) -> None:
    patch.setattr(programs.server, "_deadline", lambda *_: None)


_OF_A_SERVER = (
    messages.HeartbeatAck
    | messages.UpdateOutcome
    | messages.ModelHeader
    | messages.StopRun
)


def _incarnation_ignored(patch: Patch) -> None:
    """Messages of all servers are taken for those of the one that is followed."""

    def on(self: PeerProtocol, event: p.Event, now: float) -> list[p.Effect]:
        if isinstance(event, p.FromWire) and self._link.welcome is not None:
            message = event.message
            if isinstance(message, _OF_A_SERVER):
                own = self._link.welcome.incarnation
                event = event._replace(message=message._replace(incarnation=own))
        return original(self, event, now)

    original = PeerProtocol.on
    patch.setattr(PeerProtocol, "on", on)


def _rejection_trusted_across_incarnations(patch: Patch) -> None:
    def hear(self: PeerProtocol, message: messages.Message) -> bool:
        if isinstance(message, messages.UpdateOutcome):
            self._outbox.entries.pop(message.seq, None)
        return False

    _replace_on_control(patch, hear)


# The simulation found those below in earlier versions of the protocols.


def _older_server_followed(patch: Patch) -> None:
    patch.setattr(ServerLink, "is_of_the_past", lambda *_: False)


def _receipt_not_withdrawn(patch: Patch) -> None:
    def withdraw(self: PeerProtocol, seq: int, reason: str) -> None:
        if self._outbox.entries[seq].has_receipt:
            del self._outbox.entries[seq]
        else:
            original(self, seq, reason)

    original = PeerProtocol._withdraw
    patch.setattr(PeerProtocol, "_withdraw", withdraw)


def _no_worker_adopts_again(patch: Patch) -> None:
    patch.setattr(PeerProtocol, "_is_blocked", lambda _: False)


def _pushes_while_it_registers(patch: Patch) -> None:
    """And believes the receipts for it, but not the outcomes of a server that has not
    welcomed it yet."""

    def publish(self: PeerProtocol) -> None:
        is_welcome, self._link.is_welcome = self._link.is_welcome, True
        original(self)
        self._link.is_welcome = is_welcome

    def hear(self: PeerProtocol, message: messages.Message) -> bool:
        if isinstance(message, messages.UpdateReceived):
            self._outbox.acknowledge(message.seq)
        return False

    original = PeerProtocol._publish_outbox
    patch.setattr(PeerProtocol, "_publish_outbox", publish)
    _replace_on_control(patch, hear)


def _older_stop_followed(patch: Patch) -> None:
    def hear(self: PeerProtocol, message: messages.Message) -> bool:
        if isinstance(message, messages.StopRun):
            self._do(p.StopWork(message.reason))
        return isinstance(message, messages.StopRun)

    _replace_on_control(patch, hear)


def _stall_undetected(patch: Patch) -> None:
    patch.setattr(StallDetector, "reason", lambda *_: "")


# ------------------------------------------------------------- worlds


def _endless(seed: int, **changes: Any) -> World:
    return replace(draw_world(seed), stop=ENDLESS, **changes)


def _durable(seed: int) -> World:
    return _endless(seed, publish="after_save")


def _crashing(seed: int) -> World:
    return _endless(seed, crash_at=(60 + seed % 200,), server_timeout_s=8.0)


def _losing(seed: int) -> World:
    """Published versions are lost."""
    return replace(_crashing(seed), publish="before_save", save_s=(0.0, 0.8))


def _overtaking(seed: int) -> World:
    return _endless(seed, late=0.2, late_s=1.5, repeat=0.2, subscribe_s=(0.0, 0.0))


def _hanging(seed: int) -> World:
    """A worker hangs, and the others cannot complete a round without it."""
    world = _endless(seed, workers=2, faults=(Fault(1.0 + seed % 3, "hang", 0),))
    timing = replace(TIMINGS["fedavg"], deadline_s=0.5)
    return replace(world, timing=timing, bad_updates=0.0)


def _damaged(seed: int) -> World:
    """A version is damaged soon after its outcomes were sent."""
    faults = [Fault(0.8 + n + seed % 7 / 11, "rot", -2, 0.05) for n in range(5)]
    often = {"step_s": (0.02, 0.05), "make_s": (0.0, 0.01), "save_s": (0.0, 0.02)}
    fast = {"subscribe_s": (0.0, 0.0), "reconnect_s": (0.01, 0.05)}
    timing = replace(TIMINGS["asyn2f"], min_updates=1, min_workers=1)
    return World(timing=timing, calm_s=6.0, faults=tuple(faults), **often, **fast)


def _late_messages(seed: int) -> World:
    """A server settles an update and crashes; the next one commits it.

    An update that is superseded during an aggregation may be the first at the next
    server, which aggregates it at once.
    """
    timing = replace(TIMINGS["asyn2f"], min_updates=1, min_workers=1)
    times = (1.0 + seed % 5 / 7, 2.0 + seed % 7 / 9, 3.0 + seed % 3 / 5)
    faults = tuple(Fault(time_s, "crash", -2, 0.02) for time_s in times)
    fast = {"subscribe_s": (0.0, 0.0), "reconnect_s": (0.01, 0.05)}
    slow = {"make_s": (0.1, 0.4), "save_s": (0.1, 0.4), "step_s": (0.05, 0.2)}
    often = {"late": 0.3, "late_s": 2.0, "repeat": 0.2}
    return World(timing=timing, calm_s=4.0, faults=faults, **fast, **slow, **often)


def _rounds(seed: int) -> World:
    """Rounds whose newest version is damaged."""
    world = _endless(seed, workers=1, server_timeout_s=8.0, faults=())
    faults = (Fault(1.0 + seed % 7 / 2, "rot", -2, 0.2),)
    stall = (Fault(0.9 + seed % 7 / 2, "stall", 0, 1.0, "model"),)
    timing = replace(TIMINGS["fedavg"])
    return replace(world, timing=timing, faults=stall + faults, bad_updates=0.0)


def _stalling(seed: int) -> World:
    """Many updates are rejected, and a worker leaves, stops or hangs."""
    name = ("fedavg", "fedasync", "fedasmu", "asafl")[seed % 4]
    kind = ("hang", "retire", "pause", "kill")[seed // 4 % 4]
    fault = Fault(0.5 + seed % 5 / 2, kind, seed % 2, 2.0)
    deadline_s = 0.5 if kind == "hang" else 0.0
    timing = replace(TIMINGS[name], deadline_s=deadline_s)
    server_timeout_s = (2.5, 8.0)[seed % 3 % 2]
    own = {"bad_updates": 0.3, "server_timeout_s": server_timeout_s, "calm_s": 5.0}
    return World(timing=timing, faults=(fault,), **own)


def _late_ends(seed: int) -> World:
    """A server stops the run and crashes; the next one resumes it."""
    times = (1.5 + seed % 7 / 3, 3.0 + seed % 5 / 3, 4.5)
    faults = tuple(Fault(time_s, "crash", -2, 0.02) for time_s in times)
    fast = {"subscribe_s": (0.0, 0.0), "reconnect_s": (0.01, 0.05), "workers": 1}
    often = {"late": 0.5, "late_s": 3.0, "bad_updates": 0.7, "step_s": (0.05, 0.2)}
    timing = TIMINGS["fedasync"]
    return World(timing=timing, calm_s=5.0, faults=faults, **fast, **often)


def _waiting_for_others(seed: int) -> World:
    """A restarted server waits for a worker that registers late."""
    timing = replace(TIMINGS["adopting"], min_updates=1, min_workers=2)
    away = Fault(0.8 + seed % 5 / 7, "kill", 1, 5.0)
    crash = Fault(1.0 + seed % 7 / 5, "crash", -2, 0.1)
    slow = {"check_s": (0.0, 0.2), "step_s": (0.05, 0.1), "reconnect_s": (0.01, 0.05)}
    return World(timing=timing, calm_s=7.0, faults=(away, crash), **slow)


class Bug(NamedTuple):
    """An error, to be found within `most_seeds`."""

    name: str
    inject: Callable[[Patch], None]
    world: Callable[[int], World]
    most_seeds: int
    found_by: tuple[str, ...]  # invariants; one of them is broken within these seeds


BUGS = (
    Bug("publish before the save", _publish_before_the_save, _durable, 10, ("I6",)),
    Bug("ledger not saved", _ledger_not_in_the_checkpoint, _crashing, 50, ("I2", "I4")),
    Bug(
        "accounting of a damaged version",
        _accounting_of_a_damaged_version,
        _damaged,
        50,
        ("I3",),
    ),
    Bug("receipt is final", _receipt_is_final, _crashing, 50, ("I7",)),
    Bug(
        "a second update overwrites the first",
        _second_update_overwrites_the_first,
        _endless,
        20,
        ("I7", "I8"),
    ),
    Bug(
        "no session in the key",
        _session_missing_from_the_key,
        _endless,
        50,
        ("I3", "I8"),
    ),
    Bug("a new number", _resend_under_a_new_number, _overtaking, 50, ("I2", "I10")),
    Bug("base unchecked", _base_version_unchecked, _losing, 100, ("I13",)),
    Bug("older version", _older_version_accepted, _overtaking, 10, ("I11",)),
    Bug("unknown session ignored", _unknown_session_ignored, _crashing, 50, ("I8",)),
    Bug("no deadline", _no_deadline, _hanging, 20, ("I8",)),
    Bug(
        "incarnation ignored",
        _incarnation_ignored,
        _late_messages,
        300,
        ("I4", "I8", "I11"),
    ),
    Bug(
        "rejection trusted",
        _rejection_trusted_across_incarnations,
        _late_messages,
        300,
        ("I4",),
    ),
    Bug("older server followed", _older_server_followed, _late_messages, 100, ("I11",)),
    Bug("receipt not withdrawn", _receipt_not_withdrawn, _crashing, 200, ("I7",)),
    Bug(
        "a stall is not detected",
        _stall_undetected,
        _stalling,
        20,
        ("I8",),
    ),
    Bug(
        "pushes while it registers",
        _pushes_while_it_registers,
        _waiting_for_others,
        20,
        ("I14",),
    ),
    Bug("older stop followed", _older_stop_followed, _late_ends, 200, ("I11",)),
    Bug("no worker adopts again", _no_worker_adopts_again, _rounds, 50, ("I8",)),
)
