"""Caveats of a run's results: what a summary warns of."""

import math

import pytest

from asyn2f.protocol.caveats import warnings_of
from asyn2f.types import Metric

FELL = {
    "metric": Metric("accuracy", is_fraction=True)._asdict(),
    "strategy": "asyn2f",
    "versions": 30,
    "best_version": 12,
    "best_value": 0.9,
    "initial_value": 0.1,
}


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"final_scores": {"accuracy": 0.85}}, True),
        ({"final_scores": {"accuracy": 0.87}}, False),  # 0.03 of 0.8
        ({"final_scores": {"accuracy": 0.9}}, False),
        ({"final_scores": {"accuracy": 0.86}, "initial_value": None}, False),  # of 0.9
        ({"final_scores": {"accuracy": 0.85}, "initial_value": None}, True),
        ({"final_scores": {"accuracy": 0.85}, "initial_value": 0.9}, True),
        ({"final_scores": {"accuracy": math.nan}}, False),
        ({"final_scores": None}, False),
        ({"final_scores": {"loss": 3.0}}, False),
    ],
)
def test_a_last_value_far_below_the_best_is_told(changes, is_told):
    found = warnings_of(FELL | changes)
    assert [("max_share" in line) for line in found] == [True] * is_told


def test_a_loss_that_has_risen_again_is_told():
    loss = Metric("loss", higher_is_better=False)._asdict()
    rose = FELL | {"metric": loss, "initial_value": 2.3, "best_value": 0.3}
    rose["strategy"] = "fedavg"
    assert warnings_of(rose | {"final_scores": {"loss": 0.39}}) == []  # 0.09 of 2.0
    (line,) = warnings_of(rose | {"final_scores": {"loss": 0.41}})
    assert line.startswith("loss was 0.3 at version 12 and is 0.41 in the last one")
    unknown = rose | {"final_scores": {"loss": 9.0}, "initial_value": None}
    assert warnings_of(unknown) == []
