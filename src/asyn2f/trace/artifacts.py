"""What a run leaves behind, and the view of it that the invariant checks share."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from asyn2f import trace
from asyn2f.trace.history import History, Key, Node, absent
from asyn2f.types import Best, Metric

E = TypeVar("E", bound=trace.Event)


class Commit(NamedTuple):
    """A version according to its record in the store."""

    version: int
    parent: int
    incarnation: int
    keys: tuple[Key, ...]
    base_versions: tuple[int, ...]
    coefficients: tuple[float, ...]
    run: str = ""


class Records(NamedTuple):
    """The files beside trace and models.

    Attributes:
      metric: the headline; None = unknown.
      configured: entries of the summary that its config determines; {} = unknown.
      keep_last: how many of the newest versions the store keeps at least.
      summary: {} = the run has not ended.
      metrics: the rows.
      versions: in the store; None = unknown.
    """

    metric: Metric | None = None
    configured: Mapping[str, Any] = {}
    keep_last: int = 1
    summary: Mapping[str, Any] = {}
    metrics: Sequence[Mapping[str, Any]] = ()
    versions: Collection[int] | None = None


class RunArtifacts(NamedTuple):
    """Everything that a run leaves behind.

    Attributes:
      events: of all processes, as returned by `trace.read`.
      commits: by version, those still in the store.
      damaged: versions that were quarantined.
      unreadable: versions in the store whose record cannot be read.
      best: the best version, according to the store; or None.
      before_save: whether versions were published before they were saved.
      finished: whether the run has ended.
      records: summary, metrics and config.
    """

    events: Sequence[trace.Event]
    commits: Mapping[int, Commit]
    damaged: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    best: Best | None = None
    before_save: bool = False
    finished: bool = True
    records: Records = Records()


def commit_of(record: Mapping[str, Any]) -> Commit:
    """The commit in a version's store record.

    Version 0 contains no update; the records of a simulated run omit the updates, which
    are in its trace.
    """
    made = record.get("aggregated") or {}
    return Commit(
        version=record["version"],
        parent=record.get("parent", record["version"] - 1),
        incarnation=record["incarnation"],
        keys=tuple(tuple(key) for key in made.get("updates", ())),
        base_versions=tuple(made.get("base_versions", ())),
        coefficients=tuple(made.get("coefficients", ())),
        run=record.get("run", ""),
    )


def key_of(event: trace.Pushed | trace.UpdateSettled | trace.OutcomeReceived) -> Key:
    """The id of the update that an event is about."""
    return event.worker, event.session, event.seq


class View:
    """The artifacts of a run with what follows from them, computed once.

    Attributes:
      artifacts: of the run.
      events: of all processes.
      history: of the versions.
      absent: actors whose traces are missing.
      line: the surviving versions, newest first.
      is_simulated: whether the run was a simulation, whose workers are no processes.
      held_by: for each update, the surviving versions that contain it.
    """

    def __init__(self, artifacts: RunArtifacts) -> None:
        self.artifacts = artifacts
        self.events = artifacts.events
        self.history = History(artifacts.events)
        self.absent = absent(artifacts.events)
        self.line = self._saved_line()
        self.is_simulated = any(
            event.actor == "simulation" for event in self.those(trace.ProcessStarted)
        )
        self.held_by: dict[Key, list[int]] = {}
        for node in reversed(self.line):
            made = self.history.made.get(node)
            for update in made.updates if made else ():
                self.held_by.setdefault(tuple(update), []).append(node[1])
        for version, commit in artifacts.commits.items():
            for key in commit.keys:
                if version not in self.held_by.setdefault(key, []):
                    self.held_by[key].append(version)

    def those(self, kind: type[E]) -> Iterator[E]:
        """The events of one kind."""
        return (event for event in self.events if isinstance(event, kind))

    def made(self) -> Iterator[tuple[str, Commit | trace.Aggregated]]:
        """Every version ever aggregated and every commit, each with a description."""
        for (incarnation, version), made in self.history.made.items():
            again = f" of incarnation {incarnation}" if incarnation > 1 else ""
            yield f"version {version}{again}", made
        for version, commit in self.artifacts.commits.items():
            if commit.keys:
                yield f"version {version} in the store", commit

    def outcomes(self) -> dict[Key, str]:
        """The outcome of each pushed update: "committed", "superseded", "rejected",
        "withdrawn", "lost with its worker" or "pending".

        The versions take precedence over the server's events, and those over the
        worker's.
        """
        outcomes = {key_of(event): "pending" for event in self.those(trace.Pushed)}
        for settled in self.those(trace.UpdateSettled):
            key = key_of(settled)
            # A commit that is in no surviving version was lost with its server.
            is_final = settled.outcome not in ("committed", "withdrawn")
            is_withdrawn = settled.outcome == "withdrawn"
            if is_final or (is_withdrawn and outcomes.get(key) == "pending"):
                outcomes[key] = settled.outcome
        killed = self._killed_sessions()
        for key, outcome in outcomes.items():
            if key in self.held_by:
                outcomes[key] = "committed"
            elif outcome == "pending" and key[1] in killed:
                outcomes[key] = "lost with its worker"
        return outcomes

    def _saved_line(self) -> list[Node]:
        """The surviving versions, newest first, without a tail that was never saved."""
        line = list(self.history.line_of(self.history.newest))
        saved = {event.version for event in self.those(trace.Saved)}
        in_store = saved | self.artifacts.commits.keys()
        while saved and line and line[0][1] not in in_store:
            line.pop(0)
        return line

    def _killed_sessions(self) -> set[str]:
        """Sessions of workers whose process ended without a `Stopped` event."""
        session_of: dict[str, str] = {}  # by actor, of its current process
        killed: set[str] = set()
        for event in self.events:
            match event:
                case trace.Pushed():
                    session_of[f"worker-{event.worker}"] = event.session
                case trace.Stopped(_, actor):
                    session_of.pop(actor, None)
                case trace.ProcessStarted(_, actor) if actor in session_of:
                    killed.add(session_of.pop(actor))
        is_over = self.artifacts.finished and not self.is_simulated
        return killed | (set(session_of.values()) if is_over else set())
