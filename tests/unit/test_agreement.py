"""Terms of agreement: what the processes of one run compare."""

import json

import jax
import pytest

import asyn2f
from asyn2f import trace
from asyn2f.cli import machine
from asyn2f.config import build, identity
from asyn2f.training import agreement
from asyn2f.training.agreement import data_digest, data_digests
from tests.support.experiments import config_with


def test_a_whole_number_for_a_fraction_is_that_fraction():
    """1 and 1.0 are the same experiment."""
    ways = [
        config_with(task__quality=(1,), training__momentum=0, task__alpha=1),
        config_with(task__quality=(1.0,), training__momentum=0.0, task__alpha=1.0),
    ]
    assert identity.experiment_digest(ways[0]) == identity.experiment_digest(ways[1])
    assert identity.terms(ways[0]) == identity.terms(ways[1])
    other = config_with(task__quality=(1,), training__momentum=0.5, task__alpha=1)
    assert identity.terms(other) != identity.terms(ways[0])


def test_terms_name_every_setting_and_fit_into_a_header():
    sizes = tuple(range(1, 1001))
    config = config_with(workers=1000, task__partition="sizes", task__sizes=sizes)
    terms = identity.terms(config)
    assert sum(len(term.encode()) + 3 for term in terms) < 3000
    other = config_with(workers=1000, task__partition="sizes", task__sizes=sizes[::-1])
    (differs,) = set(identity.terms(other)) - set(terms)
    assert differs.startswith("task.sizes=[1000,999,")
    keys = {term.partition("=")[0] for term in terms}
    assert {"seed", "training.batch_size", "jax_default_prng_impl"} <= keys
    assert not {k for k in keys if k.startswith(("runtime.", "sim.", "stop."))}


OTHERWISE = [
    ("jax_enable_x64", True),
    ("jax_default_prng_impl", "rbg"),
    ("jax_threefry_partitionable", False),
    ("jax_default_matmul_precision", "bfloat16"),
]


@pytest.fixture
def flags_again():
    before = agreement.flags(agreement.REPLAYED)
    yield
    agreement.set_flags(before)


@pytest.mark.parametrize(("flag", "value"), OTHERWISE)
def test_terms_say_how_jax_makes_numbers(flags_again, flag, value):
    plain = identity.terms(config_with())
    jax.config.update(flag, value)
    (differs,) = set(identity.terms(config_with())) - set(plain)
    assert differs == f"{flag}={json.dumps(value)}"


@pytest.mark.parametrize(("flag", "value"), OTHERWISE)
def test_a_replay_makes_numbers_as_the_run_did_or_names_what_to_set(
    flags_again, flag, value
):
    here = machine.environment()
    there = json.loads(json.dumps(here | {flag: value}))  # as a trace has it
    agreement.check_flags([here, {}])
    with pytest.raises(ValueError, match=f"made with {flag} .*, here "):
        agreement.check_flags([here, there])
    agreement.set_flags(there)
    assert getattr(jax.config, flag) == value
    agreement.check_flags([there])
    agreement.set_flags(here)
    agreement.check_flags([here])


def test_a_worker_that_was_refused_has_made_no_numbers():
    events = [
        trace.ProcessStarted(0.0, "server", "run", 1, {"x": 0}),
        trace.ProcessStarted(0.0, "worker-1", "", 0, {"x": 1}),  # refused
        trace.ProcessStarted(1.0, "worker-0", "", 0, {"x": 2}),
        trace.ProcessStarted(2.0, "worker-1", "", 0, {"x": 3}),
        *(trace.Trained(3.0, worker, 2.5, 1, 1, 0, 0.5, 0.5) for worker in (0, 1, 1)),
    ]
    assert [head.environment["x"] for head in agreement.made_by(events)] == [2, 3]


def test_replay_as_a_function_names_what_differs(tmp_path):
    writer = trace.TraceWriter(tmp_path / "trace", "worker-0")
    writer.write(trace.ProcessStarted(0.0, "worker-0", "", 0, {"jax_enable_x64": True}))
    writer.write(trace.Trained(3.0, 0, 2.5, 1, 1, 0, 0.5, 0.5))
    writer.close()
    with pytest.raises(ValueError, match="jax_enable_x64 True, here False"):
        asyn2f.replay(tmp_path, config_with())


def test_a_partition_of_other_rows_has_other_data(tmp_path):
    rows = list(range(200))
    for name, shards in (
        ("a", [rows[:80], rows[80:160]]),
        ("b", [rows[:80], rows[90:170]]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(shards))
    tasks = [
        build.build_task(
            config_with(
                workers=2, task__partition="file", task__indices=str(tmp_path / name)
            )
        )
        for name in ("a.json", "b.json")
    ]
    one, other = map(data_digests, tasks)
    assert [x == y for x, y in zip(one, other, strict=True)] == [True, False, True]
    assert one[1] == data_digest(tasks[0], 1) != one[0]
