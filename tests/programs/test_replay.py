"""Runs that are simulated, and runs that are executed again, as a user starts them.

What no other result is needed for is started at once, two at a time, by `started`.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyn2f import trace
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace import causality
from tests.support.programs import read
from tests.support.replays import BAD_INPUT, Outcome, jobs, replay, simulate

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def simulated(folder):
    code, out, err = simulate(folder / "simulated")
    assert code == 0, out + err
    return folder / "simulated"


@pytest.fixture(scope="module")
def started(folder, simulated):
    """By name, what came of each program."""
    with ThreadPoolExecutor(2) as pool:
        found = {n: pool.submit(job) for n, job in jobs(folder, simulated).items()}

        def replay_real(*flags):  # which was the first to be started
            assert_ends_with(found["real"].result(), 0)
            return replay(folder / "real", *flags)

        found["real serially"] = pool.submit(replay_real)
        found["real in lanes"] = pool.submit(replay_real, "--executor=vectorised")
        yield found


def summary_of(folder) -> dict:
    return read(folder / "summary.json")


def assert_ends_with(outcome: Outcome, code: int, *words: str) -> None:
    found, out, err = outcome
    assert "Traceback" not in out + err, err
    assert found == code, out + err
    for word in words:
        assert word in out + err


def assert_refused(outcome: Outcome, *words: str) -> None:
    """One clear line, and exit code 2."""
    assert_ends_with(outcome, 2, *words)
    err = outcome[2]
    assert len([line for line in err.splitlines() if line.strip()]) == 1, err
    assert err.startswith("error: ")


# ------------------------------------------------------------- simulated runs


def test_a_simulated_run_writes_the_files_of_a_run(simulated):
    names = ("config.json", "run.json", "metrics.jsonl", "report.html", "models/12")
    assert all((simulated / name).exists() for name in names)
    assert list((simulated / "tensorboard").glob("events*"))
    summary = summary_of(simulated)
    assert summary["status"] == "finished"
    assert summary["reason"] == "max_versions = 12 reached"
    assert summary["strategy"] == "asyn2f"
    assert summary["versions"] == 12
    assert 0 < summary["final_scores"]["accuracy"] <= summary["best_value"] <= 1
    assert 0 < summary["wall_s"] < 60  # virtual
    assert set(summary["updates"]) == {"committed", "superseded", "rejected"}
    assert summary["updates"]["committed"] >= 3 * 12
    assert len(summary["params_sha256"]) == 64


def test_its_trace_is_consistent_and_agrees_with_the_summary(simulated):
    events, summary = trace.read(simulated / "trace"), summary_of(simulated)
    causality.check(events)
    made = [e for e in events if isinstance(e, trace.Aggregated)]
    assert [event.version for event in made] == list(range(1, 13))
    members = sum(len(event.updates) for event in made)
    assert members == summary["updates"]["committed"]
    steps = sum(e.steps for e in events if isinstance(e, trace.Trained))
    assert steps == summary["local_steps"]
    assert any(isinstance(event, trace.Merged) for event in events)


@pytest.mark.slow
def test_the_same_config_gives_the_same_run(started, folder, simulated):
    assert_ends_with(started["again"].result(), 0, "max_versions = 12 reached")
    again, before = summary_of(folder / "again"), summary_of(simulated)
    for name in ("params_sha256", "wall_s", "updates", "bytes_down", "best_value"):
        assert again[name] == before[name]
    traces = [trace.read(path / "trace")[1:] for path in (folder / "again", simulated)]
    assert traces[0] == traces[1]


def test_a_finished_simulation_continues_to_a_larger_limit(started, folder, simulated):
    """To the bits of one that was made in one go; and to a smaller limit it does not
    go back, nor on with other workers."""
    short, longer, shorter, other, again = started["longer"].result()
    assert_ends_with(short, 0, "max_versions = 4 reached")
    assert_ends_with(longer, 0, "max_versions = 12 reached")
    assert_ends_with(shorter, 0, "nothing to do", "finished with 12 versions")
    assert_refused(other, "config.sim.step_spread: found 2.0", "change only stop")
    assert_ends_with(again, 0, "nothing to do")
    made, expected = summary_of(folder / "longer"), summary_of(simulated)
    for name in ("params_sha256", "versions", "updates", "bytes_down", "best_version"):
        assert made[name] == expected[name]
    traces = [trace.read(path / "trace")[1:] for path in (folder / "longer", simulated)]
    assert traces[0] == traces[1]


def test_a_target_ends_a_simulated_run(started, folder):
    """Its workers are equal and every push makes a version: many at one moment."""
    assert_ends_with(started["before_save"].result(), 0, "target accuracy 0.7 reached")
    events, summary = (
        trace.read(folder / "before_save" / "trace"),
        summary_of(folder / "before_save"),
    )
    causality.check(events)
    made = [e.version for e in events if isinstance(e, trace.Aggregated)]
    assert made == list(range(1, summary["versions"] + 1))
    assert summary["versions"] < 60
    scores = {
        e.version: e.scores["accuracy"]
        for e in events
        if isinstance(e, trace.Evaluated)
    }
    assert sorted(scores) == made
    assert [v for v in scores if scores[v] >= 0.7] == [summary["versions"]]
    assert all(math.isfinite(e.loss) for e in events if isinstance(e, trace.Trained))
    assert events[-1].reason == summary["reason"] == "target accuracy 0.7 reached"


def test_a_simulated_run_that_diverges_has_failed(started, folder):
    """Up to a finite version: nothing that is not finite is kept, scored or named."""
    assert_ends_with(started["diverged"].result(), 1, "failed: version ", "not finite")
    summary = summary_of(folder / "diverged")
    events = trace.read(folder / "diverged" / "trace")
    causality.check(events)
    made = [e.version for e in events if isinstance(e, trace.Aggregated)]
    scored = [e.version for e in events if isinstance(e, trace.Evaluated)]
    assert summary["versions"] == len(made) < 12
    assert f"version {len(made) + 1} is not finite" in summary["reason"]
    assert summary["final_scores"] is summary["params_sha256"] is None
    assert scored == made
    kept = [int(p.name) for p in (folder / "diverged/models").glob("[0-9]*")]
    assert set(kept) <= set(made)
    assert summary["best_version"] in (made or [None])


def test_pushes_wait_for_a_metric_in_a_simulated_run(started, folder):
    assert_ends_with(started["metric"].result(), 0)
    events = trace.read(folder / "metric" / "trace")
    pushed = [event for event in events if isinstance(event, trace.Pushed)]
    assert min(event.info.metric for event in pushed[6:]) >= 0.6
    assert all(event.info.metric >= 0.6 or event.info.step > 5 for event in pushed)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_profiles_from_a_file(started, folder, ending):
    """Every other worker is away from 0.05 to 0.3 s."""
    assert_ends_with(started[ending].result(), 0)
    events = trace.read(folder / ending / "trace")
    away = [
        event
        for event in events
        if isinstance(event, trace.Pushed) and 0.0501 < event.time_s < 0.2999
    ]
    assert {event.worker for event in away} == {1, 3, 5}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_to_a_simulation_is_one_clear_line(started, folder, name):
    assert_refused(started[f"bad {name}"].result(), *BAD_INPUT[name][1])
    assert not (folder / f"bad {name}").exists()


# ------------------------------------------------------------- executed again


def test_a_simulated_run_replays_bit_for_bit(started):
    words = ["causally consistent", "run's summary: yes", "agree, bit for bit"]
    assert_ends_with(started["replayed"].result(), 0, *words)


def test_a_real_run_replays_bit_for_bit(started):
    """Processes over ZeroMQ, each at its own speed."""
    words = ["summary: yes", "agree, bit for bit"]
    assert_ends_with(started["real serially"].result(), 0, *words)


def test_a_real_run_replays_in_lanes_up_to_rounding(started, folder):
    outcome = started["real in lanes"].result()
    assert_ends_with(outcome, 0, "the parameters agree")
    rows = [line.split() for line in outcome[1].splitlines()]
    compared = {
        int(row[0]): float(row[3]) for row in rows if len(row) == 4 and row[0].isdigit()
    }
    store = OrbaxStore(folder / "real" / "models")
    kept = {*store.versions()} - {0}
    store.close()
    assert compared.keys() == kept
    # Of the later ones a merge may make more, where rounding decides a direction.
    assert compared[min(compared)] <= 1e-5


def test_a_history_that_forks_is_compared_along_its_surviving_branch(started):
    """Two versions bear the last number; that of the first incarnation was lost."""
    code, out, err = started["forked"].result()
    assert "the parameters agree, bit for bit" in out, out + err
    assert code == 1  # losses and shares of that trace are made up
    assert "numbers besides the parameters DIFFER" in out


@pytest.mark.parametrize(
    "name", ["another checkpoint", "another digest", "other updates"]
)
def test_other_parameters_are_reported(started, name):
    assert_ends_with(started[name].result(), 1, "the parameters DIFFER")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a merge left out", ["base is version", "worker"]),
        ("a step more", ["a stretch", "steps are counted on", "worker"]),
        ("an update left out", ["was never pushed"]),
        ("a torn line", ["simulation.jsonl:", "not a line of a trace"]),
    ],
)
def test_a_trace_that_was_changed_is_refused(started, name, words):
    outcome = started[name].result()
    assert_refused(outcome)
    assert any(word in outcome[2] for word in words), outcome[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ["nowhere", "is not a run"]),
        ("no trace", ["is not a run", "trace"]),
        ("no config", ["config.json"]),
        ("a torn config", ["config"]),
        ("an unknown key", ["colour"]),
        ("explained 99", ["99"]),
    ],
)
def test_bad_input_to_a_replay_is_one_clear_line(started, name, words):
    assert_refused(started[name].result(), *words)


def test_a_version_is_explained(started):
    words = ["version 3, made at", "follows version 2", "coefficient", "staleness"]
    assert_ends_with(started["explained"].result(), 0, *words)


# ------------------------------------------------------------- what if


def test_what_if_the_same_had_arrived_under_other_settings(started, simulated):
    outcome = started["max_share"].result()
    assert_ends_with(
        outcome, 0, "config.strategy.asyn2f.max_share: 0.5 in the run, 1.0 now"
    )
    rows = [line.split() for line in outcome[1].splitlines()]
    printed = {row[0]: row[1:] for row in rows if len(row) == 3 and row[0].isdigit()}
    assert (
        printed["12"][0] == f"{summary_of(simulated)['final_scores']['accuracy']:.4f}"
    )
    assert any(before != now for before, now in printed.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedavg", ["while_training", "--config.strategy.name=fedavg"]),
        ("timing", ["timing.min_updates", "--config.timing.min_updates=1"]),
        ("workers", ["fewer than the run had", "--config.workers=5"]),
    ],
)
def test_what_the_order_does_not_allow_needs_another_schedule(
    started, simulated, name, words
):
    command = f"asyn2f simulate --config=of_run:{simulated} "
    assert_refused(started[name].result(), command, *words)
