"""Checks that hold for every run, however it was disturbed, from its traces alone."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyn2f import trace
from asyn2f.programs import UpdateKey
from asyn2f.trace.artifacts import RunArtifacts
from asyn2f.trace.invariants import check


def check_trace(
    folder: Path, store: Mapping[int, Iterable[UpdateKey]] | None = None
) -> Counter[str]:
    """The number of pushed updates by outcome; "died": its process was killed before
    the server had received it.

    Args:
      folder: of the trace.
      store: which updates its versions are made of; None = what the trace says, in
        which the last making of a version counts.

    Raises:
      AssertionError: an update is lost or counted twice, its worker received a wrong
        outcome, a version is missing, or a worker regressed to an older one.
    """
    found = RunArtifacts(trace.read(folder), commits={})
    # Stub workers do not train, so their traces are not causal.
    violations = [v for v in check(found).violations if v.invariant != "causality"]
    assert not violations, violations[:5]
    lives = list(_lives(folder))
    versions = _made(lives) if store is None else {v: [*k] for v, k in store.items()}
    numbers = sorted(version for version in versions if version)
    assert numbers == list(range(1, len(numbers) + 1)), f"versions: {numbers}"
    counted = Counter(key for keys in versions.values() for key in keys)
    twice = [key for key, times in counted.items() if times > 1]
    assert not twice, f"counted twice: {twice}"
    received: dict[UpdateKey, str] = {}
    for life in lives:
        _check_order(life)
        received |= _outcomes(life)
    wrong = {k: v for k, v in received.items() if (v == "committed") != (k in counted)}
    assert not wrong, f"in a version or not, contrary to the outcome: {wrong}"
    outcomes = {key: "committed" for key in counted}
    pushed = set()
    for life in lives:
        ended = any(isinstance(event, trace.Stopped) for event in life)
        for event in life:
            if isinstance(event, trace.Pushed):
                key = UpdateKey(event.worker, event.session, event.seq)
                assert key not in pushed, f"pushed twice: {key}"
                pushed.add(key)
                outcomes.setdefault(key, received.get(key, "lost" if ended else "died"))
        for key in _settled(life, "withdrawn"):
            if outcomes[key] in ("lost", "died"):
                outcomes[key] = "withdrawn"
    assert outcomes.keys() <= pushed, f"nobody pushed {outcomes.keys() - pushed}"
    lost = sorted(key for key, outcome in outcomes.items() if outcome == "lost")
    assert not lost, f"{len(lost)} of {len(pushed)} lost: {lost[:20]}"
    return Counter(outcomes.values())


def _lives(folder: Path) -> Iterator[list[Any]]:
    """The events of each life of each process; a last line may be cut short."""
    for path in sorted(folder.glob("*.jsonl")):
        life: list[Any] = []
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                event = trace.from_line(line)
                if isinstance(event, trace.ProcessStarted) and life:
                    yield life
                    life = []
                life.append(event)
        yield life


def _made(lives: list[list[Any]]) -> dict[int, list[UpdateKey]]:
    made = [e for life in lives for e in life if isinstance(e, trace.Aggregated)]
    return {e.version: [UpdateKey(*key) for key in e.updates] for e in made}


def _settled(life: list[Any], *outcomes: str) -> dict[UpdateKey, str]:
    found: dict[UpdateKey, str] = {}
    for event in life:
        if isinstance(event, trace.UpdateSettled) and event.outcome in outcomes:
            key = UpdateKey(event.worker, event.session, event.seq)
            assert key not in found, f"settled twice: {key}"
            found[key] = event.outcome
    return found


def _outcomes(life: list[Any]) -> dict[UpdateKey, str]:
    """Those of a server; its next life's take precedence."""
    return _settled(life, "committed", "superseded", "rejected")


def _check_order(life: list[Any]) -> None:
    """A worker receives ever newer versions; another server may begin lower."""
    newest = -math.inf
    for event in life:
        if isinstance(event, trace.Registered):
            newest = -math.inf
        elif isinstance(event, trace.Received):
            assert event.version > newest, f"{event} after {newest}"
            newest = event.version
