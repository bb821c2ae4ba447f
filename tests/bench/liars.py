"""What does one lying worker of five cost, and what do guards and robust means save?

Digits, the speeds and the settings of configs/digits.py, `max_share` 1 as in the paper,
150 versions, three seeds; worker 0, the fastest, lies. What only the aggregation sees
is simulated. A sign flipped: the update is as far from the global model that its worker
took in last, on the other side. Labels flipped: its shard has 9 - y for y. What the
server measures on arrival runs in real threads, as fast as they can; who finds all its
updates rejected has trained for nothing, and its data are lost: as many updates of the
others go into the versions as without it ("absent"). Results: BUILD_NOTES.md.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f import trace
from asyn2f.api.simulation import simulate
from asyn2f.config import build
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.training.experiment import Experiment, make_experiment
from configs.digits import get_config
from tests.contracts.test_runtime import LocalRun
from tests.support.byzantine import Lie, moved, saying, with_liars

SEEDS = (0, 1, 2)
LIAR = 0
METHODS: dict[str, dict[str, Any]] = {
    "as published": {},
    "guards enforced": {"guards.mode": "enforce"},
    "median": {"strategy.asyn2f.aggregate": "median"},
}
LIES: dict[str, Lie | None] = {
    "none": None,
    "sign flipped": moved(-1.0),
    "labels flipped": None,  # its data lie, not its update
    "loss 0": saying(loss=0.0),
    "loss 1e6": saying(loss=1e6),
}
FAR: dict[str, Lie | None] = {
    "none": None,
    "absent": None,  # nobody lies, but worker 0 is not there, nor are its data
    "times 1e3": moved(1e3),
    "times 1e6": moved(1e6),
    "times 1e30": moved(1e30),
}


class Outcome(NamedTuple):
    """Accuracy of a real run, and what became of updates."""

    best: float
    final: float
    rejected: int  # of worker 0, for being too far away
    honest_rejected: int  # of the others, for the same
    committed: int  # of worker 0


def measure() -> Iterator[dict]:
    for partition in ("iid", "dirichlet"):
        for lie in LIES:
            for method, changes in METHODS.items():
                changes = {"task.partition": partition, **changes}
                best, final = np.array([simulated(s, lie, changes) for s in SEEDS]).T
                head = {"split": partition, "lie": lie, "method": method}
                yield head | summary_of(best, final)
    for lie in FAR:
        # As published, honest workers cannot train from what comes of it.
        changes = {"task.partition": "iid", **METHODS["guards enforced"]}
        found = [in_threads(seed, lie, changes) for seed in SEEDS]
        head = {"split": "iid", "lie": lie, "method": "guards enforced"}
        best, final, *counts = zip(*found, strict=True)
        named = dict(zip(Outcome._fields[2:], counts, strict=True))
        yield head | summary_of(np.array(best), np.array(final)) | named


def summary_of(best: np.ndarray, final: np.ndarray) -> dict[str, Any]:
    return {
        "best": [round(float(x), 4) for x in best],
        "final": [round(float(x), 4) for x in final],
        "mean_final": round(float(final.mean()), 4),
    }


def config_of(seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    config = get_config()
    config.seed = seed
    config.strategy.asyn2f.max_share = 1.0
    config.update_from_flattened_dict(changes)
    return dict(config.to_dict())


def simulated(seed: int, lie: str, changes: dict[str, Any]) -> tuple[float, float]:
    """Best and final accuracy."""
    config = config_of(seed, changes)
    experiment = build.build_experiment(config)
    if lie == "labels flipped":
        experiment = with_flipped_labels(experiment)
    told = LIES[lie]
    if told is not None:
        experiment = with_liars(experiment, {LIAR}, told)
    config["sim"] |= {"executor": "serial", "evaluate_every": 10}
    scores = simulate(config, experiment).scores
    accuracies = [score["accuracy"] for node, score in scores.items() if node]
    return max(accuracies), accuracies[-1]


def with_flipped_labels(experiment: Experiment) -> Experiment:
    """The liar trains on labels 9 - y; shards do not overlap."""
    task = experiment.task
    labels = task.train["label"].copy()
    rows = task.shards[LIAR]
    labels[rows] = task.num_classes - 1 - labels[rows]
    return make_experiment(
        task._replace(train={**task.train, "label": labels}),
        experiment.strategy,
        experiment.training,
        experiment.stop,
        experiment.seed,
        experiment.guards,
    )


def in_threads(seed: int, lie: str, changes: dict[str, Any]) -> Outcome:
    """What comes of a real run."""
    everybody, told = range(5), FAR[lie]
    if lie == "absent":
        everybody, changes = range(1, 5), {**changes, "min_workers": 4}
    experiment = build.build_experiment(config_of(seed, changes))
    settings = RuntimeSettings(heartbeat_interval_s=0.5, heartbeat_timeout_s=10.0)
    with tempfile.TemporaryDirectory() as folder:
        run = LocalRun(Path(folder), experiment, "memory", settings)
        for number in everybody:
            worker = run.start_worker(number)
            if number == LIAR and told is not None:
                worker._trainer = with_liars(experiment, {LIAR}, told).trainer
        run.start_evaluator()
        summary = run.finish()
        settled = run.events(trace.UpdateSettled)
    far = [e.worker == LIAR for e in settled if "from the global model" in e.reason]
    return Outcome(
        best=summary["best_value"],
        final=summary["final_scores"]["accuracy"],
        rejected=sum(far),
        honest_rejected=len(far) - sum(far),
        committed=sum(e.worker == LIAR and e.outcome == "committed" for e in settled),
    )
