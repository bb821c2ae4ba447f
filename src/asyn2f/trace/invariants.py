"""The invariants of a run, and their verification from trace and store alone.

The invariants hold whatever fails. Some cannot be verified after the fact: those need
every message and the state of every process, as in the protocol simulation.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from asyn2f import trace
from asyn2f.trace import checks
from asyn2f.trace.artifacts import RunArtifacts, View
from asyn2f.trace.history import absence_of
from asyn2f.trace.records import is_evaluator_absent

INVARIANTS = {
    "I1": "versions are consecutive, each made of its predecessor, and never change",
    "I2": "no update is counted twice",
    "I3": "an update acknowledged as `committed` stays in that version for good",
    "I4": "an update acknowledged as `rejected` or `superseded` is in no version",
    "I5": "coefficients are finite, non-negative and sum to 1",
    "I6": "a version is durable before it is published",
    "I7": "every pushed update has an outcome",
    "I8": "once faults stop, the run makes progress and settles its updates",
    "I9": "a server resumes from the newest valid version, as a higher incarnation",
    "I10": "every update in a version was pushed by the worker it is attributed to",
    "I11": "the version that a process holds never decreases",
    "I12": "a version is written by one incarnation",
    "I13": "an update's base is an earlier version, at the distance of its staleness",
    "I14": "queues and buffers are bounded",
    "I15": "no decision depends on a wall clock",
    "I16": "scores belong to existing versions, and the best one is in the store",
    "I17": "all processes end within 10 s of the server",
    "records": "summary, metrics and best.json agree with trace and store",
    "causality": "no event precedes its cause, or lacks it",
}

_CHECKS: dict[str, Callable[[View], Iterator[str]]] = {
    "I1": checks.versions_are_consecutive,
    "I2": checks.updates_count_once,
    "I3": checks.commits_hold,
    "I4": checks.refusals_hold,
    "I5": checks.coefficients_are_shares,
    "I6": checks.saved_before_published,
    "I7": checks.updates_have_outcomes,
    "I9": checks.resumed_from_newest,
    "I10": checks.pushed_by_its_worker,
    "I11": checks.versions_never_decrease,
    "I12": checks.one_writer,
    "I13": checks.bases_are_earlier,
    "I16": checks.scores_exist,
    "I17": checks.all_processes_end,
    "records": checks.records_agree,
    "causality": checks.is_causal,
}


class Violation(NamedTuple):
    """An invariant that does not hold, and one case of it."""

    invariant: str
    what: str


class VerificationReport(NamedTuple):
    """The result of `check`.

    Attributes:
      violations: of all invariants.
      unverified: the reason why an invariant could not be verified, by invariant.
      outcomes: how many updates had each outcome: see `View.outcomes`.
      absence: a sentence that names the processes whose traces are missing, or "".
    """

    violations: list[Violation]
    unverified: dict[str, str]
    outcomes: Counter[str]
    absence: str = ""


def check(artifacts: RunArtifacts) -> VerificationReport:
    """Verifies a run, whether it has finished, was killed, or is still running.

    >>> from asyn2f.types import UpdateInfo
    >>> info = UpdateInfo(0, 0, 1, 10.0, 0.5, 1.0, 0.0, 0.0)
    >>> pushed = trace.Pushed(0.0, 0, "s", 0, info)
    >>> made = trace.Aggregated(1.0, 1, 1, [[0, "s", 0]], [0], [0], [0.9], 0.1)
    >>> check(RunArtifacts([pushed, made], {}, finished=False)).violations[0].what
    'version 1: coefficients sum to 0.9'
    """
    view = View(artifacts)
    violations = [
        Violation(name, what) for name, cases in _CHECKS.items() for what in cases(view)
    ]
    evaluator = is_evaluator_absent(artifacts.records, artifacts.events)
    absence = absence_of([*view.absent, *["evaluator"] * evaluator])
    outcomes = Counter(view.outcomes().values())
    return VerificationReport(violations, _unverified(view), outcomes, absence)


_NEEDS_SIMULATION = "needs every message: verified by the simulation of the protocol"


def _unverified(view: View) -> dict[str, str]:
    artifacts, records = view.artifacts, view.artifacts.records
    reasons = {name: _NEEDS_SIMULATION for name in ("I8", "I14", "I15")}
    if view.absent:
        lacking = "traces of processes are missing"
        reasons |= dict.fromkeys(("I3", "I4", "I7", "I10", "I11", "causality"), lacking)
    has = {type(event) for event in view.events}
    if trace.OutcomeReceived not in has:
        reasons |= dict.fromkeys(("I3", "I4"), "no worker received an outcome")
    if artifacts.before_save:
        reasons["I6"] = "published before saving: a crash may lose versions seen"
    elif trace.Saved not in has:
        reasons["I6"] = "the trace has no saves"
    if not artifacts.finished:
        reasons["I7"] = "the run has not ended: updates may be in flight"
    elif view.is_simulated:
        reasons["I7"] = "a simulated run ends with updates in flight"
    if trace.Resumed not in has:
        reasons["I9"] = "no server resumed"
    if trace.Received not in has:
        reasons["I11"] = "no process received a version"
    if trace.Saved not in has:
        reasons["I12"] = "the trace has no saves"
    if trace.Evaluated not in has and artifacts.best is None:
        reasons["I16"] = "no version was evaluated"
    if not any(stop.actor == "server" for stop in view.those(trace.Stopped)):
        reasons["I17"] = "no server ended"
    if not records.summary and not records.metrics:
        reasons["records"] = "there is neither summary nor metrics"
    return reasons
