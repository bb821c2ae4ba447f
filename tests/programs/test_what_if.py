"""Which settings a recorded order allows."""

import pytest

from asyn2f.api.replaying import obstacle
from asyn2f.config import build
from tests.support.executions import order_for
from tests.support.experiments import config_with


@pytest.mark.parametrize(
    ("before", "now", "word"),
    [
        ({"name": "fedbuff"}, {"name": "kafl"}, "min_updates"),
        ({"name": "asyn2f", "asyn2f__merge": "none"}, {"name": "fedbuff"}, "pending"),
        ({"name": "fedasync"}, {"name": "asafl"}, "push_below_mean"),
        ({"name": "fedasmu"}, {"name": "fedasmu", "fedasmu__slot": 0.9}, "merge_slot"),
        ({"name": "fedavg"}, {"name": "fedprox"}, ""),
        ({"name": "fedbuff"}, {"name": "ca2fl"}, ""),
        ({"name": "asyn2f"}, {"name": "asyn2f", "asyn2f__merge": "linear"}, ""),
    ],
)
def test_other_settings_go_with_an_order_if_the_same_things_happen(before, now, word):
    stored, config = (
        config_with(**{f"strategy__{key}": value for key, value in changes.items()})
        for changes in (before, now)
    )
    recorded = build.build_experiment(stored)
    rows = [{"step_s": 1.0}] * recorded.workers
    order = order_for(recorded, rows, versions=1)
    experiment = build.build_experiment(config)
    found = obstacle(experiment, order, stored, {})
    assert (f"has {word} = " in found) if word else not found
