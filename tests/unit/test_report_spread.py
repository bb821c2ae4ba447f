"""The spread of the headline over workers, in the report and in comparisons."""

import math

from asyn2f.report import comparison, comparison_page, spread
from asyn2f.report.load import Run
from asyn2f.report.run_page import to_html
from asyn2f.types import Metric
from tests.unit.test_comparison import OF, trial_of
from tests.unit.test_report import _no_library  # noqa: F401, a fixture for all

ACCURACY = Metric("accuracy", is_fraction=True)
LOSS = Metric("loss", higher_is_better=False)


def run_with(metric: Metric, *values: tuple[float, ...]) -> Run:
    """A run whose versions have these means, and worst and tenth percentile if any."""
    names = ("", "_worst", "_p10")
    metrics = [
        {
            "kind": "score",
            "time_s": float(version),
            "version": version,
            "scores": dict(zip((metric.name + x for x in names), row, strict=False)),
        }
        for version, row in enumerate(values)
    ]
    return Run([], metrics, None, None, (), metric=metric, start_s=0.0)


def test_a_card_has_the_worst_worker_at_the_best_version():
    rows = (0.1, 0.0, 0.05), (0.8, 0.6, 0.7), (0.7, 0.65, 0.68)
    (card,) = spread.key_figures(run_with(ACCURACY, *rows))
    assert card.label == "Worst worker"
    assert card.value == "60.00 %"
    assert card.note == "10th percentile 70.00 %, at the best version"


def test_the_best_of_a_loss_is_the_lowest():
    (card,) = spread.key_figures(run_with(LOSS, (2.0, 3.0, 2.5), (1.0, 4.0, 3.5)))
    assert card.value == "4.000"


def test_a_section_has_the_mean_the_percentile_and_the_worst():
    rows = [(0.1 + 0.2 * n, 0.0, 0.05) for n in range(3)]
    found = spread.section(run_with(ACCURACY, *rows))
    assert found.title == "Accuracy over the workers"
    curves = {curve.name: list(curve.y) for curve in found.figure.data}
    assert curves == {
        "mean": [row[0] for row in rows],
        "10th percentile": [0.05] * 3,
        "worst": [0.0] * 3,
    }


def test_a_page_has_card_and_section():
    page = to_html(run_with(ACCURACY, (0.1, 0.0, 0.05), (0.8, 0.6, 0.7)))
    assert "Accuracy over the workers" in page
    assert "Worst worker" in page


def test_where_workers_are_not_evaluated_apart_there_is_nothing():
    run = run_with(ACCURACY, (0.1,), (0.8,))
    assert spread.section(run) is None
    assert spread.key_figures(run) == []
    trials = [trial_of("fedavg", 0, [0.1, 0.8])]
    rows = comparison.rows_of(trials, 0.5, ACCURACY)
    assert spread.in_words(trials, rows, ACCURACY) == ""


def test_a_comparison_has_means_over_the_seeds_in_its_order():
    trials = [
        trial_of("fedavg", 0, [0.1, 0.7], worst=0.4, p10=0.5),
        trial_of("fedavg", 1, [0.1, 0.7], worst=0.4, p10=0.5),
        trial_of("fedbuff", 0, [0.1, 0.8], worst=0.3, p10=0.6),
        trial_of("fedbuff", 1, [0.1, 0.8], worst=0.5, p10=0.6),
        trial_of("asyn2f", 0, [0.1, 0.6]),
        trial_of("asyn2f", 1, [0.1, 0.6], worst=math.nan),
    ]
    rows = comparison.rows_of(trials, 0.5, ACCURACY)
    found = spread.in_words(trials, rows, ACCURACY)
    # 40.00 +- 127.06 leaves the range of a fraction.
    assert "fedbuff 60.00 ± 0.00 and 40.00 [0.00, 100.00]" in found
    assert "fedavg 50.00 ± 0.00 and 40.00 ± 0.00" in found
    page = comparison_page.to_html(trials, rows, [], 0.5, ACCURACY, *OF)
    assert found in page
