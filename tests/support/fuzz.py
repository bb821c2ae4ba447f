"""Every decoder, fed with what nobody would send: random bytes and mutated captures.

    python -m tests.support.fuzz --minutes=10 --seed=0 [--only=wire]

Prints how many inputs each took, how fast, the slowest, and every failure with the seed
that finds it again: `--seed=N --count=1`. A decoder may refuse with the exception it
declares; anything else is a failure. The suite runs the same targets: `test_fuzz.py`.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgpack
import numpy as np

from asyn2f import errors, serialization, trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import UPDATES, Channel, Frames
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.status import RunCounters
from asyn2f.runtime.peer import ReceivedModel, decode_model
from asyn2f.runtime.startup import check_record
from asyn2f.types import Metric
from tests.contracts.test_runtime import small
from tests.support.protocol_harness import WELCOME, PeerHarness, heartbeat_of
from tests.support.server_harness import ServerHarness
from tests.support.updates import update_info

MOST_REASONS = 200  # under which dropped messages may be counted
_FRESH_AFTER = 3000  # inputs that one server, or one peer, is given


class Target(NamedTuple):
    """A decoder."""

    name: str
    draw: Callable[[random.Random], Any]  # an input
    feed: Callable[[Any], None]  # raises what is not allowed


# ------------------------------------------------------------- inputs

_ODD = (0, 1, -1, 2**31, 2**62, 2**63, 2**64 - 1, 0.0, -0.0, 1e300, float("nan"))
_ODD += (float("inf"), "", "x" * 600, "\x1b[2J", "../..", b"", b"\0", None, True)
_ODD += ([], {}, [[[]]], {"a": {"b": []}}, [1, 2], "worker", "é\u202e")
_INTERESTING = (0x00, 0x7F, 0x80, 0x91, 0xC0, 0xC6, 0xC7, 0xDB, 0xDD, 0xDF, 0xFF)


def mutated(draw: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them other, more, less, or elsewhere."""
    found = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        place = draw.randrange(len(found) + 1)
        way = draw.randrange(6)
        if way == 0:
            found.insert(place, draw.randrange(256))
        elif way == 1:
            del found[place : place + draw.choice([1, 2, 8])]
        elif way == 2:
            del found[place:]
        elif way == 3:
            found[place:place] = found[: draw.randrange(len(found) + 1)][:64]
        elif place < len(found):
            value = draw.choice(_INTERESTING) if way == 4 else 1 << draw.randrange(8)
            found[place] = value if way == 4 else found[place] ^ value
    return bytes(found)


def with_odd_field(draw: random.Random, data: bytes) -> bytes:
    """A packed message with another value somewhere in it."""
    fields = msgpack.unpackb(data, strict_map_key=False)
    for _ in range(draw.choice([1, 1, 3])):
        fields[draw.randrange(len(fields))] = draw.choice(_ODD)
    return bytes(msgpack.packb(fields))


def header(draw: random.Random, captures: list[bytes]) -> bytes:
    way = draw.randrange(5)
    if way == 0:
        return draw.randbytes(draw.choice([0, 1, 7, 64, 512, 5000]))
    capture = draw.choice(captures)
    if way == 1:
        return capture
    return mutated(draw, capture) if way == 2 else with_odd_field(draw, capture)


def odd_json(draw: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with something else in some places."""
    if draw.random() < 0.1:
        return draw.choice([x for x in _ODD if not isinstance(x, bytes)])
    if isinstance(value, dict) and depth < 6:
        found = {key: odd_json(draw, x, depth + 1) for key, x in value.items()}
        if draw.random() < 0.1 and found:
            found.pop(draw.choice(list(found)))
        if draw.random() < 0.1:
            found[draw.choice(["", "x", "0", "\x1b"])] = draw.choice([0, {}, "x"])
        return found
    if isinstance(value, list) and depth < 6:
        return [odd_json(draw, x, depth + 1) for x in value]
    return value


# ------------------------------------------------------------- targets


class Fuzz:
    """The targets, and what they need."""

    def __init__(self) -> None:
        logging.disable(logging.WARNING)
        self._folder = tempfile.TemporaryDirectory()
        self._experiment = small(
            min_workers=1,
            timing__min_updates=2,
            stop__max_versions=0,
            stop__max_time_s=1e9,
            guards__mode="observe",
        )
        self._fed = Counter[str]()
        self._offices = 0
        self._open_office()
        self._seat = PeerHarness()
        update, self._payload = self._harness.update(0, "w0", 0)
        self._update = wire_format.encode(update)
        self._model = wire_format.encode(
            self._harness.server.aggregator.encoded().header
        )
        self._captures = [
            wire_format.encode(message) for message in captures(self._harness)
        ]
        self._captures += [self._update, self._model]
        record = self._harness.server.aggregator.record({}) | {"accounting": _BOOKS}
        self._record = json.loads(json.dumps(record))
        self._lines = [trace.to_line(event) for event in _EVENTS]

    def close(self) -> None:
        self._harness.close()
        self._folder.cleanup()
        logging.disable(logging.NOTSET)

    def targets(self) -> list[Target]:
        return [
            Target("wire", lambda draw: header(draw, self._captures), decode),
            Target("payload", self._draw_payload, self._feed_payload),
            Target("model", self._draw_model, self._feed_model),
            Target("trace", self._draw_line, read_line),
            Target("record", self._draw_record, begin_with),
            Target("server", self._draw_frames, self._feed_server),
            Target("peer", lambda draw: header(draw, self._captures), self._feed_peer),
        ]

    def _open_office(self) -> None:
        folder = Path(self._folder.name) / str(self._offices)
        self._offices += 1
        self._harness = ServerHarness(folder, self._experiment)
        self._harness.join(0, "w0")

    def _draw_payload(self, draw: random.Random) -> tuple[messages.UpdateHeader, bytes]:
        frame = bytes(wire_format.compress(self._payload))
        drawn = [mutated(draw, self._payload), mutated(draw, frame), draw.randbytes(99)]
        payload = draw.choice(drawn)
        update = wire_format.decode(self._update)
        assert isinstance(update, messages.UpdateHeader)
        change: dict[str, Any] = {}
        if draw.random() < 0.5:
            change["num_bytes"] = draw.choice([len(payload), 0, -1, 2**60])
        if draw.random() < 0.5:
            change["digest"] = serialization.digest(payload)
        return update._replace(**change), payload

    def _feed_payload(self, drawn: tuple[messages.UpdateHeader, bytes]) -> None:
        head, payload = drawn
        template = self._experiment.template
        try:
            payload = wire_format.decompress(head, payload, template)
        except errors.WireError:
            pass
        else:
            assert len(payload) == template.num_bytes
        try:
            params = serialization.decode_params(template, payload)
        except errors.WireError:
            return
        serialization.nonfinite_leaf(params)

    def _draw_model(self, draw: random.Random) -> tuple[bytes, bytes]:
        payload = self._payload
        if draw.random() < 0.3:
            payload = mutated(draw, payload)
        return header(draw, [self._model]), payload

    def _feed_model(self, drawn: tuple[bytes, bytes]) -> None:
        try:
            message = wire_format.decode(drawn[0])
            if isinstance(message, messages.ModelHeader):
                model = decode_model(self._experiment, ReceivedModel(message, drawn[1]))
                assert all(np.isfinite(x).all() for x in jax.tree.leaves(model))
        except errors.WireError:
            pass

    def _draw_line(self, draw: random.Random) -> str:
        line = draw.choice(self._lines)
        way = draw.randrange(4)
        if way == 0:
            return json.dumps(odd_json(draw, json.loads(line)))
        if way == 1:
            return mutated(draw, line.encode()).decode(errors="replace")
        if way == 2:
            return draw.choice(["[", '{"a":', '{"kind":{']) * draw.choice([9, 9999])
        return draw.randbytes(99).decode(errors="replace")

    def _draw_record(self, draw: random.Random) -> Any:
        return odd_json(draw, self._record)

    def _draw_frames(self, draw: random.Random) -> Frames:
        self._fed["server"] += 1
        if self._fed["server"] % _FRESH_AFTER == 0:
            self._harness.close()
            self._open_office()
        if draw.random() < 0.5:
            sender = draw.choice([b"peer-0", b"peer-9", b"", draw.randbytes(9)])
            return Frames(Channel.CONTROL, sender, header(draw, self._captures), b"")
        payload = draw.choice([self._payload, mutated(draw, self._payload), b""])
        captures = [self._update]
        if draw.random() < 0.5:  # one that is new
            update = wire_format.decode(self._update)
            assert isinstance(update, messages.UpdateHeader)
            new = update._replace(seq=draw.randrange(2**40))
            captures = [wire_format.encode(new)]
        topic = draw.choice([UPDATES, b"", draw.randbytes(9)])
        return Frames(Channel.UPDATE, topic, header(draw, captures), payload)

    def _feed_server(self, frames: Frames) -> None:
        harness = self._harness
        try:
            harness.put(frames)
        except Exception:
            harness.close()
            self._open_office()
            raise
        assert not harness.io._finished
        assert len(harness.io.dropped) <= MOST_REASONS
        for peer in harness._network.peers():
            peer.poll(0.0)
        model = harness.server.aggregator.state.model
        assert np.isfinite(float(model.loss))
        assert not serialization.nonfinite_leaf(model.params)

    def _feed_peer(self, data: bytes) -> None:
        self._fed["peer"] += 1
        if self._fed["peer"] % 100 == 0:
            self._seat = PeerHarness()
            self._seat.enter(WELCOME)
            self._seat.push()
        try:
            message = wire_format.decode(data)
        except errors.WireError:
            return
        channel = Channel.CONTROL
        if isinstance(message, messages.ModelHeader | messages.UpdateHeader):
            channel = Channel.MODEL
        self._seat.on(p.FromWire(channel, b"", message, b""))
        self._seat.on(p.Tick())
        assert self._seat.machine.due_s == self._seat.machine.due_s, "no time is due"


def decode(data: bytes) -> None:
    try:
        message = wire_format.decode(data)
    except errors.WireError as error:
        reason = str(error)
    else:
        reason = ""
        again = wire_format.decode(wire_format.encode(message))
        assert type(again) is type(message)
    assert reason.isprintable()
    assert len(reason) < 200


def begin_with(record: Any) -> None:
    """What a server does with a record before it trusts it, and then with its
    accounting."""
    if not isinstance(record, dict):
        return  # which the store refuses
    try:
        check_record(record)
    except ValueError:
        return
    accounting = record.get("accounting", {})
    figures = RunCounters(accounting.get("totals", {}), Metric("accuracy"), None)
    assert np.isfinite(figures.totals(0.0)["elapsed_s"])
    json.dumps(Ledger.restore(accounting.get("ledger", {})).snapshot(1, ()))


def read_line(line: str) -> None:
    try:
        event = trace.from_line(line)
    except ValueError:
        return
    assert isinstance(event, tuple)


def captures(harness: ServerHarness) -> list[messages.Message]:
    """One of each kind that matters, as they are sent in a run."""
    run, outcome = ("run-1", 1), ("w0", 1)
    return [
        harness.hello(0, "w0"),
        harness.hello(1, "w1"),
        messages.Registered(1, 1, 5571, 5572, True),
        WELCOME,
        messages.Refused("no", retry=False),
        heartbeat_of("w0", 1, 2),
        messages.HeartbeatAck(1, 3, True),
        messages.UnknownSession(1),
        messages.FetchModel("w0", 0),
        messages.Goodbye("w1", "done"),
        messages.UpdateReceived(*outcome),
        messages.Resend(*outcome),
        messages.Backoff(*outcome, 0.5),
        messages.UpdateOutcome(run[1], *outcome, "committed", 1, ""),
        messages.EvalResult("e", 0, {"accuracy": 0.9, "loss": 0.3}),
        messages.EvalAck(0),
    ]


_BOOKS = {
    "ledger": {
        "counts": {"committed": 3, "superseded": 0, "rejected": 1},
        "workers": {
            "0": {
                "session": "w0",
                "first": 1,
                "next": 3,
                "below": 1,
                "committed": {"1": 1, "2": 1},
            }
        },
    },
    "totals": {"elapsed_s": 1.5, "bytes_up": 10, "bytes_down": 20},
}
_EVENTS = [
    trace.ProcessStarted(0.0, "server", "run-1", 1, {"jax": "0", "cores": 2}),
    trace.Aggregated(1.0, 1, 1, [[0, "w0", 1]], [0], [0], [1.0], 0.1, ["loss"]),
    trace.UpdateSettled(1.0, 0, "w0", 1, "committed", 1, ""),
    trace.Pushed(1.0, 0, "w0", 1, update_info(step=5)),
]


# ------------------------------------------------------------- the command


class Failure(NamedTuple):
    target: str
    seed: int
    error: str


def run(seconds: float, seed: int, count: int, only: str) -> list[Failure]:
    """Feeds the targets in turn, and prints what came of it."""
    fuzz, failures = Fuzz(), []
    targets = [target for target in fuzz.targets() if only in ("", target.name)]
    fed, spent_s, slowest_s = Counter[str](), Counter[str](), Counter[str]()
    until_s = time.monotonic() + seconds
    number = seed
    while time.monotonic() < until_s and (not count or number < seed + count):
        for target in targets:
            drawn = target.draw(random.Random(number))
            begin_s = time.perf_counter()
            try:
                target.feed(drawn)
            except Exception:
                text = traceback.format_exc()
                failures.append(Failure(target.name, number, text))
                print(f"--- {target.name}, seed {number}: {drawn!r:.400}\n{text}")
            took_s = time.perf_counter() - begin_s
            fed[target.name] += 1
            spent_s[target.name] += took_s
            slowest_s[target.name] = max(slowest_s[target.name], took_s)
        number += 1
    for name, inputs in fed.items():
        rate, slowest_ms = inputs / spent_s[name], 1e3 * slowest_s[name]
        bad = sum(failure.target == name for failure in failures)
        print(
            f"{name:8} {inputs:9,} inputs {rate:10,.0f} /s  "
            f"slowest {slowest_ms:7.1f} ms  {bad} failures"
        )
    fuzz.close()
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fuzz")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="inputs; 0 = no limit")
    parser.add_argument("--only", default="", help="one of the targets")
    given = parser.parse_args()
    return bool(run(60 * given.minutes, given.seed, given.count, given.only))


if __name__ == "__main__":
    sys.exit(main())
