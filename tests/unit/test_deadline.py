"""Rounds close early only at a configured deadline, and the run warns about it."""

import json

import numpy as np
import pytest

from asyn2f.api.simulation import cycles_of, order_of_config
from asyn2f.cli import server
from asyn2f.config import build
from asyn2f.config.default import get_config as default
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.report.load import load_run
from asyn2f.sim import order as o
from asyn2f.timing import deadline_warning
from tests.support.experiments import config_with

# Cycles of 45 to 1,800 s on 5 x 288 digits in batches of 32, five epochs per push.
SLOW = {
    "sim__step_s": (1.0, 2.0, 4.0, 10.0, 40.0),
    "sim__upload_s": 0.5,
    "stop__max_versions": 12,
}


def made(**changes):
    config = config_with(**(SLOW | changes))
    experiment = build.build_experiment(config)
    return experiment, order_of_config(config, experiment), config


def test_there_is_no_deadline_unless_one_is_asked_for():
    assert default().timing.deadline_s == 0.0


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_slow_workers_are_in_every_round(strategy):
    _, order, _ = made(strategy__name=strategy)
    assert np.diff(order.member_starts)[1:].tolist() == [5] * 12
    assert not order.lacking.any()


@pytest.mark.parametrize("strategy", ["asyn2f", "kafl"])
def test_every_version_is_made_of_min_updates(strategy):
    _, order, _ = made(strategy__name=strategy, timing__min_updates=3)
    assert np.diff(order.member_starts)[1:].min() >= 3
    assert not order.lacking.any()


def test_a_deadline_that_was_asked_for_is_counted():
    """Only worker 0 (46 s) is ever within 60 s: each version lacks the four others."""
    experiment, order, config = made(strategy__name="fedavg", timing__deadline_s=60.0)
    assert order.lacking.tolist() == [0] + [4] * 12
    cut = o.cut(order, int(np.flatnonzero(order.kind == o.AGGREGATE)[4]) + 1, "enough")
    assert cut.lacking.tolist() == [0] + [4] * 5
    cycles_s = cycles_of(experiment, build.build_profiles(config)).tolist()
    warning = deadline_warning(experiment.strategy.timing, cycles_s)
    assert "shorter than the cycles of 4 of 5 workers" in warning
    assert "rounds will close without them" in warning


def test_as_many_updates_as_there_are_workers_are_the_most_that_are_usual():
    """Two workers of Asyn2F, whose usual number is three, lack nothing."""
    two = {"workers": 2, "timing__min_updates": 0}
    _, order, _ = made(**two)
    assert order.lacking.tolist() == [0] * len(order.version)
    assert np.diff(order.member_starts)[1:].tolist() == [2] * (len(order.version) - 1)
    # A buffer takes several updates of one worker: it stays as large as it is.
    experiment, _, _ = made(**two, strategy__name="fedbuff")
    assert experiment.strategy.timing.min_updates == 10


@pytest.mark.parametrize(
    ("deadline_s", "is_short"), [(0.0, False), (100.0, True), (400.0, False)]
)
def test_a_deadline_is_compared_with_the_cycles_of_as_many_as_a_version_takes(
    deadline_s, is_short
):
    """Three of 46, 91 and 181 s: the third fastest takes 181 s."""
    changes = {"timing__min_updates": 3, "timing__deadline_s": deadline_s}
    config = config_with(**(SLOW | changes))
    experiment = build.build_experiment(config)
    steps = 5 * 9
    cycles_s = cycles_of(experiment, build.build_profiles(config))
    assert cycles_s == pytest.approx(np.array(SLOW["sim__step_s"]) * steps + 0.5)
    warning = deadline_warning(experiment.strategy.timing, cycles_s.tolist())
    assert ("fewer than 3 updates" in warning) == is_short


def test_travelling_is_a_part_of_a_cycle():
    config = config_with(sim__upload_mbps=8e-3, sim__download_mbps=4e-3)
    experiment = build.build_experiment(config)
    size = experiment.template.num_bytes
    cycles_s = cycles_of(experiment, build.build_profiles(config))
    assert cycles_s == pytest.approx(5 * 9 * 0.01 + size / 1e3 + size / 500)


def test_real_workers_cycles_are_as_long_as_their_speeds_say():
    experiment = build.build_experiment(config_with())
    settings = RuntimeSettings(worker_speeds=(10.0, 0.0))
    cycles_s = server._cycles_s(experiment, settings)
    assert cycles_s == pytest.approx([4.5, 0.0, 4.5, 0.0, 4.5])


def test_summary_and_report_say_how_often(tmp_path, capsys):
    summary = {"status": "finished", "reason": "so", "versions": 30}
    summary |= {"incomplete_versions": 12, "best_version": None}
    for incomplete, times in ((12, 1), (0, 0)):
        summary["incomplete_versions"] = incomplete
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        sentence = "12 of 30 versions were made without all updates"
        assert sum(sentence in note for note in load_run(tmp_path).notes) == times
        assert server.print_summary(summary, tmp_path) == 0
        assert capsys.readouterr().out.count(f"warning: {sentence}") == times
