"""Real runs with coded updates and versions replay bit for bit."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from asyn2f import errors, serialization, trace
from asyn2f.protocol import wire_format
from asyn2f.runtime import aggregator
from asyn2f.runtime.aggregator import BaseCache
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.store.base import MemoryStore
from asyn2f.training.experiment import initial_server_state
from asyn2f.transport.zmq import ZmqTransport
from tests.contracts.test_runtime import SETTINGS, LocalRun, small
from tests.support.chaos import ChaosProxy
from tests.support.patience import PATIENCE_S
from tests.support.server_harness import ServerHarness

DELTA = {"wire__updates": "int8", "wire__delta": True, "wire__versions": "int8"}
TOPK = {"wire__updates": "topk", "wire__topk_share": 0.2, "wire__versions": "bfloat16"}
FRAGMENTS = {"wire__updates": "fragments", "wire__fragments": 3}
RUNS = {
    "int8 asyn2f": {"wire__updates": "int8", "wire__versions": "bfloat16"},
    "delta asyn2f": DELTA,
    "topk fedbuff": TOPK | {"strategy__name": "fedbuff"},
    "topk fedavg": TOPK | {"strategy__name": "fedavg"},
    "fragments asyn2f": FRAGMENTS,
    "fragments fedbuff": FRAGMENTS | {"strategy__name": "fedbuff"},
}


def run_with(folder, store=None, **changes):
    run = LocalRun(folder, small(timing__deadline_s=2.0, **changes), store=store)
    run.start_evaluator()
    for number in range(3):
        run.start_worker(number)
    return run, run.finish()


def rejected(run):
    """Why updates were refused while the run went on."""
    settled = [x for x in run.events(trace.UpdateSettled) if x.outcome == "rejected"]
    return [x.reason for x in settled if x.reason != "the run is over"]


@pytest.mark.parametrize("name", RUNS)
def test_a_coded_run_replays_bit_for_bit(tmp_path, name):
    run, summary = run_with(tmp_path, **RUNS[name])
    assert summary["versions"] == 8
    assert rejected(run) == []
    again = execute_serially(run.experiment, order_of(run.events(trace.Event)))
    assert params_sha256(again.state.model.params) == summary["params_sha256"]


def test_a_packed_run_has_the_same_bits_in_fewer_bytes(tmp_path):
    packing = replace(SETTINGS, zstd=True)
    experiment = small(timing__deadline_s=2.0, **DELTA)
    run = LocalRun(tmp_path, experiment, settings=packing)
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    assert rejected(run) == []
    again = execute_serially(run.experiment, order_of(run.events(trace.Event)))
    assert params_sha256(again.state.model.params) == summary["params_sha256"]
    pushed = len(run.events(trace.Pushed))
    assert 0 < summary["bytes_up"] < pushed * experiment.update_template.num_bytes


def test_a_run_of_changes_continues_after_a_crash(tmp_path):
    """All that the first server had in memory is gone; its versions are in the store.
    Memory that is shared by both is what a disk would be."""
    store = MemoryStore()
    run, first = run_with(tmp_path / "1", store, **DELTA, stop__max_versions=4)
    assert first["versions"] == 4
    again, second = run_with(tmp_path / "2", store, **DELTA, stop__max_versions=8)
    assert second["versions"] == 8
    assert rejected(again) == []
    events = [*run.events(trace.Event), *again.events(trace.Event)]
    assert any(isinstance(event, trace.Resumed) for event in events)


# ------------------------------------------------------------- bases


def a_store(experiment, versions):
    """A store of different versions, and their digests."""
    state, store, digests = initial_server_state(experiment), MemoryStore(), []
    for version in range(versions):
        state = jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x, state)
        store.save(version, state, {})
        coded = experiment.publication.encode(state.model.params)
        digests.append(serialization.digest(serialization.encode_params(coded)))
    return store, digests


def test_a_base_that_is_not_in_memory_is_read_from_the_store():
    experiment = small(**DELTA)
    store, digests = a_store(experiment, aggregator._CACHED_BASES + 3)
    found = BaseCache(experiment, store)
    for version, digest in enumerate(digests):
        assert found.find(version, digest) is not None
        assert len(found._cached) <= aggregator._CACHED_BASES
    assert found.find(0, digests[0]) is not None
    store.set_aside(1)
    assert found.find(1, digests[1]) is None


def test_another_version_of_the_same_number_is_no_base():
    experiment = small(**DELTA)
    store, digests = a_store(experiment, 2)
    found = BaseCache(experiment, store)
    assert found.find(1, digests[0]) is None
    assert found.find(1, "0" * 32) is None


# ------------------------------------------------------------- what is refused


def test_a_peer_with_another_coding_is_refused_with_the_difference(tmp_path):
    run = LocalRun(tmp_path, small(min_workers=1, **TOPK))
    run.experiment = small(min_workers=1, **DELTA)
    run.start_worker(0)
    run._threads[-1].join(PATIENCE_S)
    ended = run.ended["worker-0"]
    assert ended.status == "refused"
    assert "is updates int8 of changes, versions int8; the" in ended.reason
    assert ended.reason.endswith("updates topk 0.2, versions bfloat16")


@pytest.fixture
def harness(tmp_path, request):
    changes = {"min_workers": 1, "timing__min_updates": 1, **request.param}
    harness = ServerHarness(tmp_path, small(**changes))
    harness.join(0, "s")
    yield harness
    harness.close()


def pushed(harness, change=lambda coded: coded, **fields):
    """The server's word on an update, coded by the worker's own program."""
    trainer, model = harness.experiment.trainer, harness.server.aggregator.encoded()
    update, _ = trainer.push(
        trainer.start(
            harness.server.aggregator.state.model,
            0,
            int(harness._reports[0].info.num_examples),
            float(harness._reports[0].info.quality),
        )
    )
    coded = change(jax.tree.map(np.array, update.params))
    fields = {"base": model.header.digest} | fields
    (outcome,) = harness.push(*harness.update(0, "s", params=coded, **fields))
    return outcome


def with_part(name, value):
    def change(coded):
        def each(path, leaf):
            is_part = jax.tree_util.keystr(path).endswith(f".{name}")
            return np.full_like(leaf, value) if is_part else leaf

        return jax.tree_util.tree_map_with_path(each, coded)

    return change


@pytest.mark.parametrize("harness", [DELTA, TOPK], indirect=True)
def test_an_honest_update_is_taken(harness):
    assert pushed(harness).outcome == "committed"


@pytest.mark.parametrize("harness", [DELTA], indirect=True)
def test_a_change_of_what_is_not_here_is_rejected(harness):
    outcome = pushed(harness, base="0" * 32)
    assert outcome.outcome == "rejected"
    assert "a change since version 0, which is not here" in outcome.reason


@pytest.mark.parametrize("harness", [DELTA], indirect=True)
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_rejected(harness, scale):
    outcome = pushed(harness, with_part("scale", scale))
    assert "is not finite" in outcome.reason


@pytest.mark.parametrize("harness", [TOPK], indirect=True)
@pytest.mark.parametrize("place", [-5, 0, 2**31 - 1])
def test_places_that_no_worker_would_name_are_rejected(harness, place):
    outcome = pushed(harness, with_part("places", place))
    assert "places of its entries" in outcome.reason


@pytest.mark.parametrize("harness", [DELTA], indirect=True)
def test_a_version_in_another_coding_is_reported(harness):
    plain = small()
    header, payload = harness.server.aggregator.encoded()
    with pytest.raises(errors.WireError, match="other arrays"):
        wire_format.decompress(header, payload, plain.publication.template)


# ------------------------------------------------------------- bytes


class Proxied(LocalRun):
    """Counts the bytes of each worker."""

    def __init__(self, *args, **kwargs) -> None:
        self.proxies: list[ChaosProxy] = []
        self._hosts = itertools.count(2)  # workers start at the same time
        super().__init__(*args, **kwargs)

    def _peer_transport(self, depth: int):
        proxy = ChaosProxy(f"127.0.0.{next(self._hosts)}", self._transport.ports())
        self.proxies.append(proxy)
        size = self.experiment.template.num_bytes
        return ZmqTransport.connect_to(proxy.address, size, depth)


@pytest.mark.parametrize("name", ["plain", "int8", "topk, packed"])
def test_bytes_are_counted_as_they_go_over_the_wire(tmp_path, name):
    """In rounds, so that no version is skipped. What ZeroMQ adds: a greeting and a
    handshake per connection, and a few bytes per frame, of which there are three."""
    wires = {"plain": {}, "int8": DELTA, "topk, packed": TOPK}
    settings = replace(SETTINGS, zstd="packed" in name)
    experiment = small(strategy__name="fedavg", **wires[name])
    run = Proxied(tmp_path, experiment, "zmq", settings=settings)
    for number in range(3):
        run.start_worker(number)
    try:
        summary = run.finish()
    finally:
        for proxy in run.proxies:
            proxy.close()
    up = sum(proxy.update.up_bytes for proxy in run.proxies)
    down = sum(proxy.model.down_bytes for proxy in run.proxies)
    pushed = len(run.events(trace.Pushed))
    given = sum(event.receivers for event in run.events(trace.Published))
    assert pushed >= 3 * 8
    # A worker that learns of the end need not take the last version.
    last = 3 * summary["bytes_down"] / given
    for counted, there, messages, less in (
        (summary["bytes_up"], up, pushed, 0),
        (summary["bytes_down"], down, given, last),
    ):
        print(f"{counted} counted, {there} on the wire, {messages} messages")
        assert counted - less <= there <= counted + 3 * 400 + 30 * messages
