"""Hostile peers: whatever they send is refused with a reason, and changes nothing."""

import io
import random
import struct
import time
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from rich.console import Console

from asyn2f import errors, serialization, trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import Channel, Frames
from asyn2f.protocol.messages import UpdateHeader
from asyn2f.report.live import plain_line, render
from asyn2f.report.run_page import write_report
from asyn2f.runtime.aggregator import problem_of
from asyn2f.runtime.peer import ReceivedModel, decode_model
from asyn2f.runtime.startup import start_of
from asyn2f.runtime.worker import Worker
from asyn2f.serialization import template_of
from asyn2f.store.base import MemoryStore
from asyn2f.training.experiment import initial_server_state
from asyn2f.types import UpdateInfo
from tests.contracts.test_runtime import small
from tests.support.protocol_harness import (
    FEDAVG,
    WELCOME,
    PeerHarness,
    ProtocolHarness,
    those,
    with_,
)
from tests.support.server_harness import SETTINGS, ServerHarness, with_leaf
from tests.support.updates import replaced, update_info

FLOATS = ("num_examples", "loss", "quality", "metric", "signal")
# What float32 cannot hold is as bad as what no number is.
NO_NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 1e38)
SUBNORMAL = 1e-40


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """A server with worker 0, in session "w0"; tests leave it as it is."""
    harness = ServerHarness(tmp_path_factory.mktemp("harness"))
    harness.join(0, "w0")
    yield harness
    harness.close()


@pytest.fixture
def seqs(harness):
    """Numbers for updates that have not come yet."""
    start = getattr(harness, "next_seq", 0)
    harness.next_seq = start + 10_000
    return iter(range(start, start + 10_000))


def assert_refused(harness, header, payload, words=""):
    before = harness.version, harness.sha256
    outcomes = harness.push(header, payload)
    assert [v.outcome for v in outcomes] == ["rejected"], header
    assert words in outcomes[0].reason
    assert (harness.version, harness.sha256) == before
    assert harness.is_empty


# ------------------------------------------------------------- S-01: no numbers


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("field", FLOATS)
def test_a_header_with_what_is_no_number_is_refused(harness, seqs, field, value):
    assert_refused(harness, *harness.update(0, "w0", next(seqs), **{field: value}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_an_array_with_what_is_no_number_is_refused(harness, seqs, value):
    with np.errstate(over="ignore"):
        params = with_leaf(harness.server.aggregator.state.model.params, value)
    header, payload = harness.update(0, "w0", next(seqs), params=params)
    assert_refused(harness, header, payload, "is not finite")


@pytest.mark.parametrize("field", ["num_examples", "quality"])
def test_a_subnormal_size_or_quality_is_not_what_was_registered(harness, seqs, field):
    header, payload = harness.update(0, "w0", next(seqs), **{field: SUBNORMAL})
    assert_refused(harness, header, payload, "registered")


@pytest.mark.parametrize("field", ["loss", "metric", "signal", "params"])
def test_a_subnormal_elsewhere_is_a_number_like_zero(tmp_path, field):
    """An honest weight can be one, and an honest loss can be 0."""
    harness = ServerHarness(tmp_path)
    harness.join(0, "w0")
    change = {field: SUBNORMAL}
    if field == "params":
        change = {
            "params": with_leaf(harness.server.aggregator.state.model.params, SUBNORMAL)
        }
    outcomes = harness.push(*harness.update(0, "w0", 0, **change))
    assert [v.outcome for v in outcomes] == ["committed"]
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(harness.server.aggregator.state)
    )
    made = harness.events(trace.Aggregated)
    assert [event.coefficients for event in made] == [[1.0]]
    harness.close()


@pytest.mark.parametrize("loss", [-1.0, -1e-9, -SUBNORMAL, -1e12])
def test_a_negative_loss_is_refused(harness, seqs, loss):
    assert_refused(harness, *harness.update(0, "w0", next(seqs), loss=loss), "diverged")


@pytest.mark.parametrize(
    "claim",
    [
        {"num_examples": 10**12},
        {"num_examples": 0},
        {"num_examples": -5},
        {"quality": 1.5},
        {"quality": 1e-40},
        {"quality": 0.5},
        {"worker": 3},
        {"worker": -1},
        {"worker": 2**62},
        {"fingerprint": "other"},
        {"terms": ("seed=1",)},
        {"data": "other"},
        {"protocol": 99},
        {"role": "server"},
    ],
)
def test_nobody_registers_with_more_than_the_config_gives(harness, claim):
    hello = harness.hello(2 if "worker" not in claim else 0, "claims")
    answers = harness.control("claims", wire_format.encode(hello._replace(**claim)))
    assert [type(answer) for answer in answers] == [messages.Refused]
    assert harness.server._io._machine._sessions.get("claims") is None


# ------------------------------------------------------------- T1: the merged model


def test_a_version_that_would_not_be_finite_is_not_made(tmp_path):
    """Its updates may each be finite: it is no version all the same."""
    harness = ServerHarness(tmp_path)
    experiment = harness.experiment
    harness.join(0, "w0")
    sound = harness.experiment.aggregate

    def overflows(state, updates):
        state, metrics = sound(state, updates)
        worst = jax.tree.map(lambda leaf: leaf * np.inf, state.model.params)
        return state._replace(model=state.model._replace(params=worst)), metrics

    harness.server.aggregator.experiment = experiment._replace(aggregate=overflows)
    assert_refused(harness, *harness.update(0, "w0", 0), "not finite after")
    assert harness.store.versions() == [0]
    assert not harness.events(trace.Aggregated)
    harness.server.aggregator.experiment = experiment
    outcomes = harness.push(*harness.update(0, "w0", 1))
    assert [(v.outcome, v.version) for v in outcomes] == [("committed", 1)], outcomes
    harness.close()


@pytest.mark.parametrize("shares", [[0.0, 0.0], [1.5, -0.5], [np.nan, 1.0], [0.4, 0.4]])
def test_coefficients_that_are_no_shares_make_no_version(shares):
    experiment = small()
    state = initial_server_state(experiment)
    assert not problem_of(state, {"coefficients": jnp.array([0.25, 0.75])})
    assert "shares" in problem_of(state, {"coefficients": jnp.array(shares)})


def test_a_round_that_comes_to_nothing_is_told_to_the_program():
    """Whoever waits for a version after its push would wait for ever otherwise."""
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    effects = [e for w in (0, 1) for e in server.push(str(w), 0, 0)]
    (make,) = those(effects, p.AggregateVersion)
    effects = server.on(p.AggregationFailed(make.version, "params is not finite"))
    outcomes = [e.event for e in those(effects, p.RecordEvent)]
    settled = [event for event in outcomes if isinstance(event, trace.UpdateSettled)]
    assert {event.outcome for event in settled} == {"rejected"}
    assert len(settled) == 2
    effects += server.wait(10.0)
    assert those(effects, p.Finish)[0].status == "failed"


# ------------------------------------------------------------- S-03: mutants


def mutants(harness, seqs, count, seed):
    """Updates each of which has something wrong, as (header bytes, payload)."""
    draw = random.Random(seed)
    other = [
        template_of(tree).fingerprint
        for tree in (
            {"w": np.zeros((2, 3), np.float32)},
            {"w": np.zeros((2, 3), np.float16)},
            {"w": np.zeros((2, 3), ">f4")},
            {"w": np.zeros((3, 2), np.float32)},
        )
    ]
    for _ in range(count):
        header, payload = harness.update(0, "w0", next(seqs))
        fields, info, size = list(header), list(header.info), len(payload)
        fields[header._fields.index("info")] = info
        way = draw.choice(
            ["field", "info", "type", "fields", "payload", "size", "value"]
        )

        def place_of(name, fields=fields, info=info):
            inner = name in UpdateInfo._fields
            names = UpdateInfo._fields if inner else UpdateHeader._fields
            return info if inner else fields, names.index(name)

        if way == "field":  # of another type
            place = draw.randrange(len(fields))
            wrong = [None, [], {}, True, "x\n", b"x", 2**63, -(2**63), [1], "é" * 300]
            value = draw.choice(wrong)
            fields[place] = value
        elif way == "info":
            info[draw.randrange(len(info))] = draw.choice([None, [], True, "x", 2**62])
        elif way == "type":
            name = draw.choice(
                ["worker", "seq", "base_version", "start_version", "num_bytes"]
            )
            where, place = place_of(name)
            where[place] = draw.choice([float(where[place]), str(where[place])])
        elif way == "fields":
            if draw.random() < 0.5:
                del fields[draw.randrange(len(fields))]
            else:
                fields.insert(draw.randrange(len(fields)), draw.choice([0, 0.0, "x"]))
        elif way == "payload":
            mutated = bytearray(payload)
            mutated[draw.randrange(size)] ^= 1 << draw.randrange(8)
            payload = bytes(mutated)
        elif way == "size":
            cut = draw.randrange(size)
            payload = draw.choice(
                [payload[:cut], payload + b"\0" * draw.randint(1, 99), b"", payload * 2]
            )
            if draw.random() < 0.5:  # and its header agrees with it
                fields[header._fields.index("num_bytes")] = len(payload)
                digest = serialization.digest(payload)
                fields[header._fields.index("digest")] = digest
        else:
            values = {
                "fingerprint": [*other, "", "0" * 32],
                "digest": ["", "0" * 32],
                "run": ["run-2", "-"],
                "worker": [1, 2, -1, 2**31, 2**62],
                "session": ["w1", "W0", "w0-"],
                "num_bytes": [0, -1, 2**60, size + 1],
                "base_version": [-1, harness.version + 1, 2**31, 2**62],
                "start_version": [-1, 1, 2**62],
                "step": [-1, 2**31, 2**62],
                "num_examples": [0.0, -1.0, 1e12, 95.0],
                "quality": [0.0, 1.5, 0.5, -1.0],
                "loss": [-1.0, 1e21, float("nan")],
            }
            name = draw.choice(list(values))
            where, place = place_of(name)
            where[place] = draw.choice(values[name])
        yield way, msgpack.packb(["UpdateHeader", *fields]), payload


def test_every_mutant_of_a_real_update_is_refused(harness, seqs):
    seed = 20
    print(f"seed {seed}")
    before, ways = (harness.version, harness.sha256), set()
    for way, header, payload in mutants(harness, seqs, 600, seed):
        ways.add(way)
        harness.put(Frames(Channel.UPDATE, b"update", header, payload))
        harness.heard("w0")
        assert (harness.version, harness.sha256) == before, (way, header)
        assert harness.is_empty
    assert len(ways) == 7
    assert sum(harness.io.dropped.values()) > 100


# ------------------------------------------------------------- what a store says

LIFE = {"session": "a", "first": 0, "next": 0, "below": 0, "committed": {}}


@pytest.mark.parametrize(
    "record",
    [
        {"incarnation": "1"},
        {"incarnation": -1},
        {"accounting": []},
        {"accounting": {"ledger": 7}},
        {"accounting": {"ledger": {"counts": {"committed": "3"}}}},
        {"accounting": {"ledger": {"counts": {"other": 3}}}},
        {"accounting": {"ledger": {"workers": {"0": LIFE | {"below": -1}}}}},
        {"accounting": {"ledger": {"workers": {"0": LIFE | {"committed": {"x": 1}}}}}},
        {"accounting": {"ledger": {"workers": {"0": LIFE | {"session": 7}}}}},
        {"accounting": {"ledger": {"workers": {"0": {}}}}},
        {"accounting": {"ledger": {"workers": {"a": LIFE}}}},
        {"accounting": {"ledger": {"workers": {"-1": LIFE}}}},
        {"accounting": {"totals": {"elapsed_s": float("nan")}}},
        {"accounting": {"totals": {"elapsed_s": "1"}}},
    ],
    ids=str,
)
def test_a_version_whose_record_is_nonsense_is_set_aside(harness, record):
    store, state = MemoryStore(), harness.server.aggregator.state
    store.save(0, state, harness.server.aggregator.record({}))
    store.save(1, state, record)
    begun = start_of(harness.experiment, store)
    assert store.versions() == [0]
    assert begun.made_in == 1


# ------------------------------------------------------------- S-05, S-06: again, bases


def test_an_update_that_comes_three_times_counts_once(tmp_path):
    harness = ServerHarness(tmp_path, small(min_workers=1, timing__min_updates=2))
    for worker in range(2):
        harness.join(worker, f"w{worker}")
    for seq in range(4):
        pushed = [harness.update(worker, f"w{worker}", seq) for worker in range(2)]
        for _ in range(3):
            for header, payload in pushed:
                base = min(harness.version, seq)
                changed = replaced(header, base_version=base, start_version=base)
                outcomes = harness.push(changed, payload)
                assert {v.outcome for v in outcomes} <= {"committed", "superseded"}
    keys = [
        tuple(key)
        for event in harness.events(trace.Aggregated)
        for key in event.updates
    ]
    assert len(set(keys)) == len(keys) == 8
    harness.close()


@pytest.mark.parametrize("base", [-1, -(2**62), 1, 2**31, 2**32, 2**62])
@pytest.mark.parametrize("field", ["base_version", "start_version"])
def test_a_version_that_nobody_gave_out_is_no_base(harness, seqs, field, base):
    header, payload = harness.update(0, "w0", next(seqs), **{field: base})
    assert_refused(harness, header, payload, "is not in 0..0")


@pytest.mark.parametrize("base", [2**63, 2**64 - 1, -(2**63), 0.0, True, None, "0"])
def test_a_base_that_is_no_version_is_not_even_read(harness, seqs, base):
    header, payload = harness.update(0, "w0", next(seqs))
    header = replaced(header, base_version=base)
    packed = msgpack.packb(["UpdateHeader", *header])
    with pytest.raises(errors.WireError, match="base_version"):
        wire_format.decode(packed)
    before = sum(harness.io.dropped.values())
    harness.put(Frames(Channel.UPDATE, b"update", packed, payload))
    assert sum(harness.io.dropped.values()) == before + 1
    assert harness.is_empty


# ------------------------------------------------------------- S-11: bombs


def bombs(seed):
    """Two hundred headers that would cost much, were they believed."""
    draw = random.Random(seed)
    for _ in range(40):  # nested, as deep as a header is long and deeper
        opening = draw.choice([b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\x92\xc0"])
        yield opening * draw.choice([100, 511, 1023, 2000, 4096 // len(opening)])
    for _ in range(40):  # sizes that are declared and not there
        kind = draw.choice([0xDD, 0xDF, 0xDB, 0xC6, 0xC9])  # array, map, str, bin, ext
        size = draw.choice([2**32 - 1, 2**31, 10**6, 10**5])
        yield bytes([kind]) + struct.pack(">I", size) + bytes(draw.randrange(64))
    for _ in range(40):  # many items
        item = draw.choice([b"\x00", b"\xc0", b"\x90", b"\xa0"])
        yield b"\xdd" + struct.pack(">I", 4000) + item * 4000
    for _ in range(40):  # longer than a header may be
        yield bytes([draw.randrange(256)]) * draw.choice([4097, 10**5, 10**6])
    for _ in range(40):  # in the place of a field
        bomb = draw.choice([b"\x91" * 2000, b"\xdd\xff\xff\xff\xff", b"\xdb\x7f"])
        yield b"\x93\xa5Pulse" + bomb + b"\x01"


def test_a_bomb_costs_neither_time_nor_memory(harness):
    seed = 4
    print(f"seed {seed}")
    found = list(bombs(seed))
    assert len(found) == 200
    worst_s = 0.0
    tracemalloc.start()
    for bomb in found:
        taken = []
        for _ in range(3):  # of the processor's time, as the machine may be busy
            begin = time.thread_time()
            with pytest.raises(errors.WireError):
                wire_format.decode(bomb)
            taken.append(time.thread_time() - begin)
        worst_s = max(worst_s, min(taken))
        harness.put(Frames(Channel.CONTROL, b"peer-0", bomb, b""))
        harness.put(Frames(Channel.UPDATE, b"update", bomb, b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert worst_s < 0.05
    assert peak < 2**22
    assert harness.version == 0


def test_reasons_are_counted_under_few_names(harness):
    """Or else whoever sends a million kinds of nonsense fills the memory."""
    before = len(harness.io.dropped)
    for number in range(500):
        bad = msgpack.packb([f"kind {number}", number])
        harness.put(Frames(Channel.CONTROL, b"peer-0", bad, b""))
    assert len(harness.io.dropped) <= before + 1


# ------------------------------------------------------------- S-15: a hostile server


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    harness = ServerHarness(tmp_path_factory.mktemp("worker"), small())
    worker = Worker(harness.experiment, 0, SETTINGS, harness._journal)
    worker._client = SimpleNamespace(post=lambda _: None)  # it has joined nobody
    worker._inbox.put(ReceivedModel(*harness.server.aggregator.encoded()))
    worker._receive()
    assert worker._newest == 0
    yield worker
    harness.close()


def letters(experiment):
    """What a server might send, and why it must not be believed."""
    model = initial_server_state(experiment).model
    payload = bytes(serialization.encode_params(model.params))
    template = experiment.template
    good = messages.ModelHeader(
        "run-1",
        1,
        7,
        100.0,
        0.5,
        1.0,
        0.1,
        template.fingerprint,
        len(payload),
        serialization.digest(payload),
    )
    assert int(decode_model(experiment, ReceivedModel(good, payload)).version) == 7
    for value in (*NO_NUMBERS, -0.1, 1e6, 0.11):
        yield good._replace(learning_rate=value), payload
    for value in (*NO_NUMBERS[:5], -1.0, 0.0, 1.5):
        yield good._replace(quality=value), payload
    for value in (*NO_NUMBERS, -1.0):
        yield good._replace(loss=value), payload
        yield good._replace(num_examples=value), payload
    for value in (-1, 2**31, 2**62):
        yield good._replace(version=value), payload
    for size in (0, 1, len(payload) - 1, len(payload) + 1, 2**62):
        yield good._replace(num_bytes=size), payload
    for other in (b"", payload[:-1], payload + b"\0", bytes(len(payload))):
        yield good, other
    yield good._replace(fingerprint="f" * 32), payload
    for value in (float("nan"), float("inf"), -float("inf")):
        bad = bytes(serialization.encode_params(with_leaf(model.params, value)))
        yield good._replace(digest=serialization.digest(bad)), bad


def test_a_worker_refuses_a_hostile_server_and_keeps_its_model(worker, caplog):
    held = worker._fresh
    count = 0
    for header, payload in letters(worker._experiment):
        worker._inbox.put(ReceivedModel(header, payload))
        worker._receive()
        assert worker._fresh is held, header
        assert worker._newest == 0
        count += 1
    assert len(caplog.messages) == count > 30
    assert all("dropped a version" in line for line in caplog.messages)


@pytest.mark.parametrize(
    "change",
    [
        {"model_port": 0},
        {"update_port": 65_536},
        {"model_port": -1},
        {"update_port": 2**62},
        {"heartbeat_interval_s": 0.0},
        {"heartbeat_interval_s": -1.0},
    ],
)
def test_a_welcome_that_cannot_be_followed_is_none(change):
    peer = PeerHarness()
    assert not those(peer.hear(WELCOME._replace(**change)), p.Connect)
    assert those(peer.hear(WELCOME), p.Connect)


# ------------------------------------------------------------- S-19: what people read

EVIL = (
    "\x1b[2J\x1b[31mowned",
    "line\nINFO forged",
    "\r\x08\x07\x00",
    "\u202egnp.exe",
    "\u2028\u2029\x85",
    "\ud800",
)
MARKUP = "</script><script>alert(1)</script><b>[red]"


@pytest.mark.parametrize("text", EVIL)
def test_what_cannot_be_printed_is_neither_read_nor_sent(text):
    with pytest.raises(errors.WireError, match=r"not printable|not msgpack"):
        wire_format.decode(
            msgpack.packb(["StopRun", 1, text], unicode_errors="surrogatepass")
        )
    sent = wire_format.decode(wire_format.encode(messages.StopRun(1, text)))
    assert sent.reason.isprintable()
    assert len(sent.reason) == len(text)


@pytest.mark.parametrize(
    "kind", messages.Message.__args__, ids=lambda kind: kind.__name__
)
def test_no_kind_of_message_carries_control_characters(kind):
    hints = wire_format._HINTS[kind.__name__]
    plain = {int: messages.PROTOCOL, float: 1.0, bool: True, str: "x"}
    plain[UpdateInfo[int, float]] = update_info()
    plain[messages.WorkerProgress] = messages.NO_PROGRESS
    texts = [name for name, hint in hints.items() if hint is str]
    for name in texts:
        values = {n: plain.get(hint, ()) for n, hint in hints.items()}
        wire_format.decode(msgpack.packb([kind.__name__, *values.values()]))
        values[name] = "x\x1b[0m"
        with pytest.raises(errors.WireError, match=name):
            wire_format.decode(msgpack.packb([kind.__name__, *values.values()]))


def test_no_progress_carries_control_characters():
    progress = messages.NO_PROGRESS._replace(state="x\x1b[0m")
    heartbeat = messages.Heartbeat("0", 1, progress, 0, True, True, 0, ())
    with pytest.raises(errors.WireError, match=r"progress: state is not printable"):
        wire_format.decode(msgpack.packb(["Heartbeat", *heartbeat]))


def test_long_words_and_wild_numbers_do_not_spoil_the_view():
    server = ProtocolHarness(workers=2)
    server.join("0", "1")
    progress = messages.WorkerProgress(
        *(MARKUP + "x" * 400, 2**62, float("inf"), float("nan"), -1e300),
        *(2**62, 2**62, 1e300),
    )
    heartbeat = messages.Heartbeat("0", 1, progress, 2**62, True, True, 0, ())
    server.hear("0", heartbeat)
    status = server.machine.status()
    assert all(len(worker.state) <= 20 for worker in status.workers)
    assert len(plain_line(status)) < 400
    console = Console(width=80, height=30, record=True, file=io.StringIO())
    console.print(render(status))
    assert max(map(len, console.export_text().splitlines())) <= 80


def test_markup_in_a_trace_is_text_in_the_report(tmp_path):
    writer = trace.TraceWriter(tmp_path / "trace", "server")
    writer.write(trace.ProcessStarted(0.0, "server", MARKUP, 1, {"device": MARKUP}))
    writer.write(trace.Published(0.5, 0, 80, 1))
    writer.write(trace.WorkerJoined(0.5, 0, "a", 10))
    writer.write(trace.Adopted(1.0, 0, 0, 0))
    writer.write(trace.Trained(2.0, 0, 1.0, 5, 5, 0, 0.5, 0.5))
    writer.write(trace.Pushed(2.0, 0, "a", 0, update_info(step=5)))
    writer.write(trace.UpdateSettled(2.5, 0, "a", 0, "rejected", -1, MARKUP))
    writer.write(trace.WorkerLeft(3.0, 0, "a", MARKUP))
    writer.write(trace.Stopped(3.0, "server", MARKUP))
    writer.close()
    page = write_report(tmp_path).read_text()
    assert "<script>alert" not in page
    assert MARKUP not in page
