"""Data that each worker has of its own: who opens them, and what is refused."""

import jax
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.config import build, identity, schema
from asyn2f.config.default import default_config
from asyn2f.config.private import roots_of
from asyn2f.errors import ConfigError, DataError
from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol.channels import Subscribed, topic_of
from asyn2f.tasks.base import num_rows
from asyn2f.timing import Stop
from asyn2f.training.agreement import check_registered, data_digest
from asyn2f.training.evaluation import evaluation_at, is_federated
from tests.support.messages import hello_of
from tests.support.protocol_harness import ProtocolHarness, messages, those

SOURCE = """
from pathlib import Path
import flax.linen as nn
import numpy as np
import asyn2f

COLUMNS = {"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, np.int32)}
TEST = {"x": np.ones((6, 4), np.float32), "y": np.arange(6) % 3}

def make_task(*, worker: int | None = None, data: Path | None = None):
    return asyn2f.supervised(nn.Dense(3), COLUMNS if data is None else data, test=TEST)

def from_folder(*, folder: Path = Path("."), worker: int | None = None):
    rows = COLUMNS if worker is None else folder / f"{worker}.npz"
    return asyn2f.supervised(nn.Dense(3), rows, test=TEST)

def holds_out(*, worker: int | None = None, data: Path | None = None):
    return asyn2f.supervised(nn.Dense(3), COLUMNS if data is None else data, test=0.4)

def opens_all(*, worker: int | None = None):
    return asyn2f.supervised(nn.Dense(3), TEST, test=TEST)

def takes_none(*, data: Path = Path(".")):
    return asyn2f.supervised(nn.Dense(3), TEST, test=TEST)
"""


def write(path, rows, columns=4, **more):
    x = np.random.default_rng(rows).normal(size=(rows, columns))
    np.savez(path, x=x, y=np.arange(rows) % 3, **more)


@pytest.fixture
def silos(tmp_path):
    (tmp_path / "silos.py").write_text(SOURCE)
    for worker, rows in enumerate((5, 9, 12)):
        write(tmp_path / f"{worker}.npz", rows)
    return tmp_path


def config_of(silos, name="make_task", **changes):
    reference = f"{silos}/silos.py:{name}"
    config = default_config(workers=3, task__factory=reference, **changes)
    return schema.plain(config)


def pattern(silos):
    return roots_of(f"{silos}/{{worker}}.npz")


def test_a_worker_has_its_own_rows_and_no_others(silos):
    task = build.build_task(config_of(silos), 1, pattern(silos))
    assert [len(rows) for rows in task.shards] == [0, 9, 0]
    assert num_rows(task.train) == 9
    assert num_rows(task.test) == 6


def test_a_process_of_nobody_opens_no_file(silos):
    for path in silos.glob("*.npz"):
        path.unlink()
    task = build.build_task(config_of(silos), "nobody", pattern(silos))
    assert [len(rows) for rows in task.shards] == [0, 0, 0]
    assert num_rows(task.train) == 0
    assert build.build_experiment(config_of(silos), task).workers == 3


def test_the_whole_has_for_each_worker_the_rows_of_its_process(silos):
    whole = build.build_task(config_of(silos), "all", pattern(silos))
    assert [len(rows) for rows in whole.shards] == [5, 9, 12]
    for worker in range(3):
        own = build.build_task(config_of(silos), worker, pattern(silos))
        assert data_digest(own, worker) == data_digest(whole, worker)
    assert (own.init, own.loss) == (whole.init, whole.loss)


def test_a_factory_may_find_the_data_of_a_worker_itself(silos):
    config = config_of(silos, "from_folder")
    config = schema.changed(config, {"task.args.folder": str(silos)})
    assert num_rows(build.build_task(config, 2).train) == 12
    assert num_rows(build.build_task(config).train) == 26
    elsewhere = schema.changed(config, {"task.args.folder": "/elsewhere"})
    assert identity.terms(config) == identity.terms(elsewhere)


@pytest.mark.parametrize(
    ("name", "whose", "data", "words"),
    [
        ("make_task", 1, "", "found nothing, but worker 1 opens its own data"),
        ("make_task", "all", "", r"the data of worker 0, 1, 2 are missing"),
        (
            "make_task",
            "all",
            "0:{silos}/0.npz,2:b",
            r"the data of worker 1 are missing",
        ),
        ("make_task", "all", "{silos}/0.npz", "found one path, .* for 3 workers"),
        ("make_task", 0, "0:a,b", "allowed: 0:PATH,1:PATH"),
        ("make_task", 0, "{silos}/none.npz", "none.npz: no such file"),
        ("make_task", 0, "{silos}/empty.npz", "empty.npz: found no rows"),
        ("make_task", 0, "{silos}/large.npz", "found 40 rows, allowed: 1 to 30, which"),
        ("make_task", 0, "{silos}/wide.npz", r"found float32 \[6, 4\] for x, needed"),
        (
            "holds_out",
            0,
            "{silos}/wide.npz",
            r"worker 0 in .*wide.npz: found x float32\[5\], y int32\[\], allowed: as "
            r"specified for worker=None, x float32\[4\], y int32\[\]",
        ),
        ("opens_all", "nobody", "", "found 6 training rows for worker=None"),
        ("takes_none", "all", "{silos}/0.npz", "the task takes none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(silos, name, whose, data, words):
    write(silos / "empty.npz", 0)
    write(silos / "large.npz", 40)
    write(silos / "wide.npz", 5, columns=5)
    config = config_of(silos, name, privacy__max_examples=30)
    with pytest.raises(ConfigError, match=words) as caught:
        build.build_task(config, whose, roots_of(data.replace("{silos}", str(silos))))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- at the server


def own_data(**changes):
    return ProtocolHarness(most_examples=50, data=("", "", "test"), **changes)


def refusals(effects):
    return [message.reason for message in messages(effects, wire.Refused)]


def test_a_worker_may_register_with_any_number_of_rows_up_to_the_limit():
    server = own_data()
    assert not refusals(server.hear("0", hello_of(0, "0", num_examples=50)))
    (reason,) = refusals(server.hear("1", hello_of(1, "1", num_examples=51)))
    assert reason == (
        "51 examples, allowed: at most 50, which is config.privacy.max_examples"
    )


def test_the_test_set_of_the_evaluator_is_still_compared():
    server = own_data()
    assert refusals(server.hear("e", hello_of(-1, "e", data="another")))
    assert not refusals(server.hear("e", hello_of(-1, "e", data="test")))


CHANGES = ({"data": "other"}, {"num_examples": 11}, {"quality": 0.5})


@pytest.mark.parametrize("change", CHANGES)
def test_a_worker_that_comes_back_with_other_data_is_refused(change):
    server = own_data()
    server.join("0a")
    server.wait(2.0)  # its process has ended
    (reason,) = refusals(server.hear("0b", hello_of(0, "0b", **change)))
    assert "data of worker 0 differ from those that it first" in reason
    assert not refusals(server.hear("0c", hello_of(0, "0c")))


def test_a_resumed_server_knows_what_is_in_its_version():
    server = own_data()
    server.join("0", "1")
    effects = server.push("0", 0) + server.make(1)
    (save,) = those(effects, p.SaveVersion)
    assert save.accounting["data"] == {"0": [10, 1.0, ""], "1": [10, 1.0, ""]}
    after = own_data(accounting=save.accounting, version=1)
    assert refusals(after.hear("0b", hello_of(0, "0b", data="other")))


def test_data_that_others_know_are_not_pinned():
    server = ProtocolHarness()
    server.join("0")
    (save,) = those(server.push("0", 0) + server.make(1), p.SaveVersion)
    assert "data" not in save.accounting


def test_the_trace_has_what_a_worker_has_registered_with():
    events = [
        effect.event
        for effect in own_data().hear("0", hello_of(0, "0", data="abc", quality=0.5))
        if isinstance(effect, p.RecordEvent)
    ]
    (joined,) = (event for event in events if isinstance(event, trace.WorkerJoined))
    assert (joined.num_examples, joined.quality, joined.data) == (10, 0.5, "abc")


def test_a_replay_with_other_data_names_the_worker(silos):
    task = build.build_task(config_of(silos), "all", pattern(silos))
    digests = data_digest(task, 0), "other"
    events = [
        trace.WorkerJoined(0.0, worker, "s", 5, 1.0, digest)
        for worker, digest in enumerate(digests)
    ]
    check_registered(task, events[:1])
    with pytest.raises(DataError, match="the data of worker 1 differ"):
        check_registered(task, events)


# ---------------------------------------------------------------- evaluation


def federated(**changes):
    server = own_data(federated=True, min_workers=2, **changes)
    for worker in range(2):
        rows = 10 if worker == 0 else 30
        server.hear(f"{worker}", hello_of(worker, f"{worker}", held_out=rows))
        server.on(Subscribed(topic_of(f"{worker}")))
    return server


def scores_of(server, worker, version, accuracy):
    message = wire.EvalResult(str(worker), version, {"accuracy": accuracy})
    return server.hear(str(worker), message)


def reports(effects):
    return [(x.version, x.scores) for x in those(effects, p.ReportScore)]


def test_a_version_has_scores_once_all_live_workers_have_scored_it():
    server = federated()
    first = scores_of(server, 0, 0, 0.5)
    assert messages(first, wire.EvalAck)
    assert not reports(first)
    second = scores_of(server, 1, 0, 0.9)
    ((version, scores),) = reports(second)
    assert version == 0
    assert scores["accuracy"] == (10 * 0.5 + 30 * 0.9) / 40
    assert (scores["accuracy_worst"], scores["accuracy_p10"]) == (0.5, 0.54)
    (event,) = evaluated(second)
    assert (event.version, event.workers) == (0, [0, 1])


def test_a_worker_that_has_left_is_not_waited_for():
    server = federated()
    assert not reports(scores_of(server, 0, 0, 0.5))
    left = server.hear("1", wire.Goodbye("1", "over"))
    ((_, scores),) = reports(left)
    assert scores["accuracy"] == 0.5


def evaluated(effects):
    events = [effect.event for effect in those(effects, p.RecordEvent)]
    return [event for event in events if isinstance(event, trace.Evaluated)]


def test_a_version_is_scored_once():
    """Neither a repeated message, whose acknowledgement was lost, nor a worker that
    came too late makes it another one over fewer workers."""
    server = federated()
    effects = scores_of(server, 0, 0, 0.5) + scores_of(server, 1, 0, 0.9)
    assert len(evaluated(effects)) == 1
    again = scores_of(server, 0, 0, 0.5)
    assert messages(again, wire.EvalAck)
    left = server.hear("1", wire.Goodbye("1", "over"))
    assert not evaluated(again + left)


def test_scores_of_an_evaluator_and_of_other_names_are_ignored():
    server = federated()
    server.join("e")
    assert not reports(server.hear("e", wire.EvalResult("e", 0, {"accuracy": 0.5})))
    assert not reports(server.hear("0", wire.EvalResult("0", 0, {"loss": 0.5})))
    scores_of(server, 0, 0, 0.5)
    more = wire.EvalResult("1", 0, {"accuracy": 0.5, "more": 0.5})
    assert not reports(server.hear("1", more))


def test_a_run_ends_when_its_workers_have_scored_the_last_version():
    server = federated(stop=Stop(max_versions=1))
    server.push("0", 0)
    effects = server.push("1", 0) + server.make(1) + server.save(1)
    assert not messages(effects, wire.StopRun)
    scores_of(server, 1, 0, 0.9)
    scores_of(server, 0, 1, 0.5)
    effects = scores_of(server, 1, 1, 0.5)
    left = server.hear("0", wire.Goodbye("0", "over"))
    assert not reports(left), "version 0 has not been scored by all"
    assert {effect.peer for effect in those(effects, p.Send)} >= {b"0", b"1"}
    assert messages(effects, wire.StopRun)


def test_a_target_is_that_of_all_workers():
    server = federated(stop=Stop(target=0.7))
    scores_of(server, 0, 0, 0.9)
    effects = scores_of(server, 1, 0, 0.65)
    assert reports(effects)[0][1]["accuracy"] == 0.7125
    assert messages(effects, wire.StopRun)


def test_a_worker_evaluates_on_its_own_held_out_rows(silos):
    config = config_of(silos, "holds_out")
    nobody = build.build_task(config, "nobody")
    whole = build.build_task(config, "all", pattern(silos))
    own = build.build_task(config, 1, pattern(silos))
    assert [len(rows) for rows in nobody.held_out] == [0, 0, 0]
    assert [len(rows) for rows in whole.held_out] == [2, 4, 5]
    assert [len(rows) for rows in own.held_out] == [0, 4, 0]
    params = whole.init(jax.random.key(0))
    assert evaluation_at(own, 1)(params) == evaluation_at(whole, 1)(params)
    assert data_digest(own, 1) == data_digest(whole, 1)
    assert is_federated(build.build_experiment(config, own))
    hidden = schema.changed(config, {"privacy.reveal": ()})
    hidden = schema.changed(hidden, {"strategy.name": "fedbuff"})
    assert not is_federated(build.build_experiment(hidden, own))


def test_a_target_needs_somebody_who_scores(silos):
    changes = {"privacy__reveal": (), "strategy__name": "fedbuff"}
    config = config_of(silos, "holds_out", stop__target=0.9, **changes)
    with pytest.raises(ConfigError, match=r"stop\.target: found 0\.9, but nobody"):
        build.build_task(config, "nobody")
