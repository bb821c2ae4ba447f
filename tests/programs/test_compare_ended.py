"""Comparisons that are interrupted, terminated and killed, and started again.

They count seconds while processes of their own work: see `slow`.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs.test_replay import assert_ends_with
from tests.support.comparisons import (
    COMPARED,
    SMALL,
    compare,
    finish,
    results_of,
    running,
    trials_of,
)
from tests.support.patience import PATIENCE_S, Crowd, wait_until
from tests.support.programs import children_of, has_ended
from tests.support.replays import Outcome

pytestmark = [pytest.mark.processes, pytest.mark.slow]
SOON_S = 8.0
# One trial after the other, each of which takes minutes.
LONG = [*SMALL, "--strategies=fedavg", "--jobs=1", "--config.stop.max_time_s=3000"]


def has_loaded(process: subprocess.Popen, library: str) -> bool:
    """Whether a child that makes trials has loaded a library (Linux)."""
    for pid in children_of(process.pid):
        of = Path("/proc") / str(pid)
        with contextlib.suppress(OSError):
            is_maker = "spawn_main" in (of / "cmdline").read_text()
            if is_maker and library in (of / "maps").read_text():
                return True
    return False


def count_of(folder: Path) -> int:
    return results_of(folder).count("\n")


class Disturbed(NamedTuple):
    """A comparison that was interrupted, then killed, then left alone."""

    interrupted: Outcome
    kept: str  # results when it was interrupted
    killed: Outcome
    more: str  # and when it was killed
    cut: str  # what its last line was cut to
    last: Outcome


def disturb(folder: Path) -> Disturbed:
    flags = [*COMPARED, "--jobs=1"]
    with running(folder, *flags) as process:
        wait_until(lambda: count_of(folder) > 1, process)
        os.killpg(process.pid, signal.SIGINT)
        interrupted = finish(process)
    kept = results_of(folder)
    with running(folder, *flags) as process:
        wait_until(lambda: count_of(folder) > kept.count("\n"), process)
        os.killpg(process.pid, signal.SIGKILL)
        killed = finish(process)
    more = results_of(folder)
    path = folder / "results.jsonl"
    cut = more.splitlines()[-1][:-100]
    path.write_text(more[: -len(more.splitlines()[-1]) - 1] + cut)
    return Disturbed(interrupted, kept, killed, more, cut, compare(folder, *flags))


def interrupt(folder: Path, library: str) -> tuple[Outcome, float, float]:
    """The outcome of an interruption when a trial's process has loaded a library, and
    how long that takes, and how long it may."""
    with running(folder, *LONG) as process:
        wait_until(lambda: has_loaded(process, library), process)
        os.killpg(process.pid, signal.SIGINT)
        since_s = time.monotonic()
        with Crowd() as crowd, contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        took_s = time.monotonic() - since_s
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        return finish(process), took_s, SOON_S * crowd.factor


def terminate(folder: Path) -> list[int]:
    """Which of its processes live on when it has been terminated."""
    with running(folder, *SMALL, "--strategies=fedavg", "--jobs=1") as process:
        wait_until(lambda: has_loaded(process, "jaxlib"), process)
        family = [process.pid, *children_of(process.pid)]
        process.terminate()
        by_s = time.monotonic() + PATIENCE_S
        return [pid for pid in family if not has_ended(pid, by_s)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ended")


@pytest.fixture(scope="module")
def whole(folder):
    """A comparison that nothing has disturbed."""
    assert_ends_with(compare(folder / "whole", *COMPARED), 0)
    return folder / "whole"


@pytest.fixture(scope="module")
def disturbed(folder):
    return disturb(folder / "disturbed")


def test_interrupted_it_prints_how_many_trials_are_completed(disturbed):
    kept = disturbed.kept.count("\n")
    assert 1 < kept < 6
    assert_ends_with(disturbed.interrupted, 130)
    last = disturbed.interrupted[1].strip().splitlines()[-1]
    found = re.fullmatch(r"(\d+)/6 trials completed; the same command continues", last)
    # One that has just been written may not have been counted.
    assert found
    assert int(found[1]) in (kept - 1, kept)


def test_started_again_it_keeps_what_was_there(disturbed, folder):
    assert disturbed.killed[0] == -signal.SIGKILL
    assert disturbed.kept
    assert disturbed.more.startswith(disturbed.kept)
    assert disturbed.kept.count("\n") < disturbed.more.count("\n") < 6
    *before, _ = disturbed.more.splitlines()
    assert_ends_with(disturbed.last, 0)
    assert results_of(folder / "disturbed").splitlines()[: len(before)] == before


def test_disturbed_it_ends_as_undisturbed(disturbed, folder, whole):
    assert_ends_with(disturbed.last, 0)
    ends = [
        [(x.strategy, x.seed, x.key, x.params_sha256, x.values) for x in trials]
        for trials in (trials_of(folder / "disturbed"), trials_of(whole))
    ]
    assert ends[0] == ends[1]


def test_a_last_line_that_was_cut_off_is_run_again(disturbed, folder):
    assert_ends_with(disturbed.last, 0)
    lost = json.loads(disturbed.more.splitlines()[-1])
    text = (folder / "disturbed" / "results.jsonl").read_text()
    assert disturbed.cut
    assert disturbed.cut not in text.splitlines()  # the new line may begin like it
    assert [json.loads(x)["key"] for x in text.splitlines()].count(lost["key"]) == 1


def test_interrupted_at_the_start_it_ends_without_a_traceback(tmp_path):
    outcome, *_ = interrupt(tmp_path / "before_save", "_multiarray_umath")
    assert_ends_with(outcome, 130, "0/5 trials completed")


def test_interrupted_in_a_long_trial_it_ends_soon(tmp_path):
    outcome, took_s, allowed_s = interrupt(tmp_path / "late", "jaxlib")
    assert took_s < allowed_s
    assert_ends_with(outcome, 130, "0/5 trials completed")


def test_terminated_it_leaves_no_process_behind(tmp_path):
    assert terminate(tmp_path / "run") == []
