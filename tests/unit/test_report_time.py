"""How workers spent their time: one zero, one definition, nothing invented."""

import json
import re

import pytest

from asyn2f import trace
from asyn2f.report import run_page, workers
from asyn2f.report.load import Run, load_run
from asyn2f.report.run_page import to_html, write_report
from tests.support.synthetic_run import made_up
from tests.unit.test_report import Page, _no_library  # noqa: F401, a fixture for all


def trained(worker, start_s, end_s):
    return trace.Trained(end_s, worker, start_s, 1, 1, 0, 0.5, 0.5)


def run_of(*events) -> Run:
    return Run([*events], [], None, None, (), start_s=10.0)


BY_HAND = (
    trace.WorkerJoined(2.0, 0, "a", 64),  # 8 s before the run begins
    trace.Blocked(11.0, 0, 3.0, 0),  # one of its 8 s is within the run
    trained(0, 12.0, 15.0),
    trace.WorkerLeft(16.0, 0, "a", "killed"),
    trace.UpdateSettled(18.0, 0, "a", 1, "committed", 1, ""),  # no sign of life
    trace.WorkerJoined(20.0, 0, "b", 64),
    trained(0, 21.0, 23.0),
    trace.Blocked(24.0, 0, 23.5, 1),
)


def test_time_is_counted_within_the_run_and_while_the_worker_is_there():
    (worker,) = workers.tally(run_of(*BY_HAND))
    assert worker.trained_s == pytest.approx(3 + 2)
    assert worker.waited_s == pytest.approx(1 + 0.5)
    assert worker.present_s == pytest.approx(6 + 4)  # 10 to 16 s, 20 to 24 s
    assert worker.rest_s == pytest.approx(3.5)


def test_head_and_table_say_the_same_and_their_parts_add_up():
    tallies = workers.tally(run_of(*BY_HAND))
    use = workers.time_use(tallies)
    assert use == pytest.approx((0.5, 0.15, 0.35))
    page = to_html(run_of(*BY_HAND))
    assert (
        "Workers spent 50 % of their time training, 15 % waiting, and 35 % starting, "
        "merging, encoding and sending."
    ) in page
    shares = re.findall(r"<td>(\d+) %</td>", workers.table(tallies))
    assert shares == ["50", "15", "35"]
    assert page.count("% of their time") == 1


def test_whole_run_begins_with_the_run(tmp_path):
    """Workers join and wait before; the window does not begin there."""
    run = load_run(made_up(tmp_path, versions=20))
    early = trace.WorkerJoined(run.start_s - 30.0, 0, "a", 400)
    course = run_page.timeline(run._replace(events=[early, *run.events]))
    whole = course.windows[-1]
    assert (whole.label, whole.start_s) == ("Whole run", 0.0)
    assert whole.end_s == pytest.approx(run.events[-1].time_s - run.start_s)


def test_of_a_worker_without_a_trace_nothing_is_made_up(tmp_path):
    folder = made_up(tmp_path, versions=20)
    for path in folder.glob("trace/worker-*"):
        path.unlink()
    tallies = workers.tally(load_run(folder))
    assert sum(worker.committed for worker in tallies) == 40
    assert workers.time_use(tallies) is None
    page = Page(write_report(folder))
    assert "The trace of workers 0, 1, 2, 3, 4 is missing" in page.text
    assert "Workers spent" not in page.text
    assert "0 %" not in re.sub(
        r"\d0 %", "", page.text.partition("Shares of the time")[2]
    )


def test_what_one_missing_trace_does_not_tell_leaves_the_others_as_they_are(tmp_path):
    folder = made_up(tmp_path, versions=20)
    before = {w.worker: w for w in workers.tally(load_run(folder))}
    (folder / "trace" / "worker-2.jsonl").unlink()
    run = load_run(folder)
    after = {w.worker: w for w in workers.tally(run)}
    assert [w for w in after if after[w] != before[w]] == [2]
    rows = workers.table(list(after.values()))
    assert rows.count("<td>–</td>") >= 6
    total = rows.rpartition('<tr class="total">')[2]
    others = sum(w.steps for n, w in before.items() if n != 2)
    assert f"<td>{others:,}</td>" in total


def test_a_worker_that_is_there_and_never_trained_trained_for_nothing():
    joined = trace.WorkerJoined(11.0, 0, "a", 64)
    waited = trace.Blocked(19.0, 0, 11.0, 0)
    use = workers.time_use(workers.tally(run_of(joined, waited)))
    assert use == (0.0, 1.0, 0.0)


def test_a_run_without_scores_says_what_is_missing(tmp_path):
    folder = made_up(tmp_path, versions=5)
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [json.dumps(row) for row in rows if row["kind"] != "score"]
    path.write_text("\n".join(kept) + "\n")
    page = Page(write_report(folder))
    assert "No version was evaluated: there was no evaluator" in page.text
    assert "headline" not in page.figures
