"""Caveats of a run's results: what its summary warns of."""

from collections.abc import Mapping
from typing import Any

from asyn2f.types import Metric

_LOST = 0.05  # of the way from the initial to the best value; see `lost`


def incomplete(summary: Mapping[str, Any]) -> str:
    """A sentence on versions aggregated without all updates, or "".

    >>> incomplete({"incomplete_versions": 0, "versions": 30})
    ''
    >>> incomplete({"incomplete_versions": 12, "versions": 30})[:47]
    '12 of 30 versions were made without all updates'
    """
    count = summary.get("incomplete_versions") or 0
    if not count:
        return ""
    return (
        f"{count:,} of {summary.get('versions'):,} versions were made without all "
        "updates that they wait for: fewer than timing.min_updates, or a synchronous "
        "round that timing.deadline_s closed without a live worker"
    )


def lost(summary: Mapping[str, Any]) -> str:
    """A sentence on a last value far from the best one, or "".

    Far is more than 5 % of the way from the initial value to the best one. An unknown
    initial value counts as 0 for a fraction that is to rise; for other headlines there
    is no warning then.

    >>> accuracy = Metric("accuracy", is_fraction=True)._asdict()
    >>> found = {"metric": accuracy, "initial_value": 0.1, "best_value": 0.9}
    >>> found |= {"best_version": 12, "strategy": "fedavg"}
    >>> lost(found | {"final_scores": {"accuracy": 0.87}})
    ''
    >>> lost(found | {"final_scores": {"accuracy": 0.8}})[:60]
    'accuracy was 0.9 at version 12 and is 0.8 in the last one: m'
    """
    metric, scores = Metric(**summary["metric"]), summary.get("final_scores") or {}
    best, begin = summary.get("best_value"), summary.get("initial_value")
    last = scores.get(metric.name)
    if begin is None and metric.is_fraction and metric.higher_is_better:
        begin = 0.0
    if best is None or last is None or begin is None:
        return ""
    if not abs(best - last) > _LOST * abs(best - begin):  # False where one is NaN
        return ""
    hint = "a lower training.learning_rate may help"
    if summary.get("strategy") == "asyn2f":
        hint = "strategy.asyn2f.max_share=0.5 caps what one worker contributes"
    return (
        f"{metric.name} was {best:.4g} at version {summary.get('best_version')} and is "
        f"{last:.4g} in the last one: more than {_LOST:.0%} of the way from the "
        f"initial value to the best is lost; {hint}"
    )


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """Caveats of a run's results, in sentences.

    >>> warnings_of({"versions": 30, "best_version": None})[0][:41]
    'no version was evaluated, or none to a fi'
    """
    found = [incomplete(summary)]
    if "metric" in summary:
        found.append(lost(summary))
    if summary.get("versions") and summary.get("best_version") is None:
        found.append(
            "no version was evaluated, or none to a finite score, so there is no best "
            "version: start an evaluator as well (asyn2f evaluator)"
        )
    return [warning for warning in found if warning]
