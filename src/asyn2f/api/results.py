"""The results of a run that was simulated or replayed."""

import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import asyn2f
from asyn2f import rundir, trace
from asyn2f.config import build, schema
from asyn2f.config.task import TaskSettings
from asyn2f.report.metrics import MetricsWriter
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.execute import Means
from asyn2f.sim.order import Order, Result
from asyn2f.sim.schedule import carried
from asyn2f.sim.to_trace import events_of
from asyn2f.tasks.base import split_of
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.experiment import Experiment, registered
from asyn2f.types import Best, Params, Scores, headline_of

Row = dict[str, Any]
_BYTES = ("bytes_up", "bytes_down", "broadcast_bytes_down")


class Simulation(NamedTuple):
    """A run that was executed under a virtual clock or replayed.

    `history` is what most users need; the other attributes hold everything else.
    """

    config: build.Config  # plain dicts
    experiment: Experiment
    order: Order  # of events; up to the first version that is not finite
    result: Result  # the newest state; numbers of each update and version
    scores: dict[int, Scores]  # by node of the order: 0, and those evaluated
    means: Means  # of the execution
    best_params: Params = None  # of `best`, on the host; None if there is none
    is_replay: bool = False  # of a run of processes

    def __repr__(self) -> str:
        order, metric = self.order, self.experiment.task.metric
        best, last = self.best(), self.scores.get(order.newest)
        found = []
        if best is not None:
            found.append(f"best {best.value:.4g} (version {best.version})")
        if last is not None:
            found.append(f"last {last[metric.name]:.4g}")
        return (
            f"<Simulation of {self.experiment.task.name} by "
            f"{self.experiment.strategy.name}, {self.experiment.workers} workers: "
            f"{int(order.version[order.newest])} versions in "
            f"{order.end_s - order.start_s:.1f} virtual s; {metric.name} "
            f"{', '.join(found) or 'unknown'}>"
        )

    @property
    def params(self) -> Params:
        """The parameters of the newest version."""
        return self.result.state.model.params

    @property
    def has_diverged(self) -> bool:
        """Whether training has ended with a version that is not finite."""
        return not bool(self.result.numbers.finite.all())

    def history(self) -> list[Row]:
        """One row per version, the initial one first.

        Returns:
          Dicts with the keys

          - `version`, `time_s`: its number, and seconds since version 0;
          - `bytes_up`, `bytes_down`: payloads that had been sent by then, updates and
            versions; `broadcast_bytes_down`: the latter if every version went to every
            live worker, as it does in a run of processes;
          - `workers`: to which it was published;
          - `updates`: aggregated into it; `lacking`: how many fewer than planned;
          - `staleness_mean`, `staleness_max`: of those updates, in versions;
          - `loss`: the mean of their training losses; `learning_rate`;
          - `scores`: the named numbers on the test set, `{"accuracy": ..., ...}`.

          None stands for what does not exist: updates of version 0, scores of a
          version that was not evaluated.
        """
        order, numbers = self.order, self.result.numbers
        nodes, made = [0, *sorted(o.line_of(order))], order.kind == o.AGGREGATE
        made_s = dict(zip(order.value[made].tolist(), order.time_s[made], strict=True))
        times_s = np.array([order.start_s, *(made_s[node] for node in nodes[1:])])
        moved = self._moved(times_s)
        rows = []
        for place, node in enumerate(nodes):
            members = slice(order.member_starts[node], order.member_starts[node + 1])
            staleness = numbers.staleness[members].tolist()
            row: Row = {
                "version": int(order.version[node]),
                "time_s": float(times_s[place] - order.start_s),
                **{name: int(of[place]) for name, of in moved.items()},
                "workers": int(order.receivers[node]),
                "updates": len(staleness),
                "lacking": int(order.lacking[node]),
                "staleness_mean": None,
                "staleness_max": None,
                "loss": _number(numbers.model_loss[node]),
                "learning_rate": _number(numbers.learning_rate[node]),
            }
            if staleness:
                row["staleness_mean"] = sum(staleness) / len(staleness)
                row["staleness_max"] = max(staleness)
            row["scores"] = self.scores.get(node)
            rows.append(row)
        return rows

    def best(self) -> Best | None:
        """The best version by the task's headline, the first of several; None if no
        value of it is finite."""
        metric, best = self.experiment.task.metric, None
        for node, scores in sorted(self.scores.items()):
            value = scores[metric.name]
            if metric.is_better(value, best.value if best else None):
                best = Best(int(self.order.version[node]), metric.name, value)
        return best

    def summary(self) -> Row:
        """The run in a few numbers, as in `summary.json` of a run's folder."""
        order, newest = self.order, self.order.newest
        final = None if self.has_diverged else self.scores.get(newest)
        end = self._moved(np.array([order.end_s]))
        rejected = np.isin(order.kind, (o.REJECT, o.REFUSE))
        return {
            "status": "failed" if self.has_diverged else "finished",
            "reason": order.reason,
            "strategy": self.experiment.strategy.name,
            "seed": self.experiment.seed,
            "versions": int(order.version[newest]),
            **headline_of(
                self.experiment.task.metric, self.best(), final, self.scores.get(0)
            ),
            "wall_s": order.end_s - order.start_s,  # virtual
            "updates": {
                "committed": len(order.members),
                "superseded": int((order.kind == o.SUPERSEDE).sum()),
                "rejected": int(rejected.sum()),
            },
            "incomplete_versions": int((order.lacking > 0).sum()),
            "params_sha256": None if self.has_diverged else params_sha256(self.params),
            "local_steps": order.num_steps,
            **{name: int(of[-1]) for name, of in end.items()},
        }

    def report(self, path: Path | str) -> Path:
        """Writes the report of the run, one page of HTML, and returns its path.

        Raises:
          OSError: it cannot be written.
        """
        from asyn2f.report.run_page import write_report  # nothing else needs Plotly

        device = jax.devices()[0]
        environment = {
            "asyn2f": asyn2f.__version__,
            "jax": jax.__version__,
            "platform": device.platform,
            "device": device.device_kind,
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            task, config = self.experiment.task, self.config
            chosen = schema.section(config, TaskSettings)
            built_in = f"{chosen.dataset}-{chosen.model}"
            if not chosen.factory and task.name != built_in:  # a user-defined one
                config = schema.changed(config, {"task.dataset": task.name})
            rundir.write_json(folder / rundir.CONFIG, dict(config))
            stored = {"run": "simulated", "metric": task.metric._asdict()}
            rundir.write_json(folder / rundir.RUN, stored)
            split = split_of(task, self.experiment.reveal)
            rundir.write_json(folder / rundir.SPLIT, split)
            write_run(self, folder, environment)
            summary = self.summary() | {"run": "simulated"}
            rundir.write_json(folder / rundir.SUMMARY, summary)
            return Path(shutil.copy(write_report(folder), path))

    def _moved(self, times_s: np.ndarray) -> dict[str, np.ndarray]:
        """Bytes by each of these times, under the names of `history`."""
        if self.is_replay:  # of processes, which publish every version to every worker
            up, down = _published(self.experiment, self.order, times_s)
            moved = Moved(up, down, down)
        else:
            moved = bytes_by(self.config, self.experiment, self.order, times_s)
        return dict(zip(_BYTES, moved, strict=True))


def write_run(run: Simulation, folder: Path, environment: Mapping[str, Any]) -> None:
    """Writes the trace and the metrics of a simulation into its folder.

    Args:
      run: not a replay.
      folder: holds `run.json`.
      environment: that the numbers depend on; the means of execution are added.
    """
    experiment, order = run.experiment, run.order
    events = events_of(
        order,
        run.result.numbers,
        run.scores,
        run=rundir.read_json(folder / rundir.RUN)["run"],
        environment={**environment, **run.means._asdict()},
        **_revealed(experiment),
        num_bytes=experiment.publication.template.num_bytes,
        guards=experiment.guards,
    )
    traces = folder / rundir.TRACE
    traces.mkdir(exist_ok=True)
    (traces / "simulation.jsonl").unlink(missing_ok=True)  # it may be a link
    with open(traces / "simulation.jsonl", "x", encoding="utf-8") as file:
        file.writelines(trace.to_line(event) + "\n" for event in events)
    metrics = MetricsWriter(folder)
    for row in run.history():
        scores = row.pop("scores")
        if row["version"]:
            metrics.write({"kind": "version", **row})
            if scores is not None:
                now = {name: row[name] for name in ("version", "time_s", *_BYTES)}
                metrics.write({"kind": "score", **now, "scores": scores})
    metrics.close()


def _revealed(experiment: Experiment) -> dict[str, Any]:
    """What workers tell of themselves."""
    own, steps = registered(experiment), epochs_of(experiment)
    return {
        "num_examples": [examples for examples, _ in own],
        "qualities": [quality for _, quality in own],
        "steps_per_epoch": steps if "size" in experiment.reveal else [0] * len(own),
    }


class Moved(NamedTuple):
    """Bytes of payloads that had been moved by each of T times, i64 [T] each."""

    up: np.ndarray  # updates
    down: np.ndarray  # versions that workers fetched, as the method has it: `carried`
    broadcast_down: np.ndarray  # if every version went to every live worker instead


def bytes_by(
    config: build.Config, experiment: Experiment, order: Order, times_s: np.ndarray
) -> Moved:
    """The bytes that a scheduled run had moved by each of these times.

    Args:
      config: of whose `sim` the profiles of the links are used.
      experiment: of the run.
      order: of its schedule, which may have been cut.
      times_s: f64 [T]; of the order's clock.
    """
    up, broadcast_down = _published(experiment, order, times_s)
    num_bytes = experiment.publication.template.num_bytes
    timing, profiles = experiment.strategy.timing, build.build_profiles(config)
    traffic = carried(order, timing, profiles, num_bytes, experiment.seed)
    return Moved(up, traffic.until(times_s) * num_bytes, broadcast_down)


def _published(
    experiment: Experiment, order: Order, times_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of all updates, and of every version to each of its receivers."""
    pushed_s = order.time_s[order.kind == o.PUSH]
    made_s = order.time_s[order.kind == o.AGGREGATE]
    pushed = np.searchsorted(pushed_s, times_s, side="right")
    nodes = np.searchsorted(made_s, times_s, side="right")
    received = np.cumsum(order.receivers, dtype=np.int64)[nodes]
    return (
        pushed * experiment.update_template.num_bytes,
        received * experiment.publication.template.num_bytes,
    )


def epochs_of(experiment: Experiment) -> list[int]:
    """The number of steps in an epoch of each worker."""
    batch_size = experiment.training.batch_size
    return [steps_per_epoch(len(rows), batch_size) for rows in experiment.task.shards]


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
