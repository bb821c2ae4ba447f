"""Events as lines and back, torn files, and traces of other formats."""

import errno
import json
import os
import shutil
import typing

import pytest

from asyn2f import rundir, trace
from asyn2f.api.verification import artifacts_of
from asyn2f.cli.claim import claimed
from asyn2f.errors import RunDirError, StoreError, TraceFormatError
from asyn2f.report.metrics import MetricsWriter
from asyn2f.report.run_page import write_report
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace.collection import collect
from asyn2f.types import Best, Scores, UpdateInfo
from tests.contracts.test_store import state_of

EXAMPLES = {
    float: 1.25,
    int: 7,
    str: 'a "quoted" word, ünïcode\nand a second line',
    dict[str, typing.Any]: {"jax": "0.10.2", "devices": 1, "nested": {"a": [1, 2.5]}},
    list[list[typing.Any]]: [[0, "s1", 3], [2, "s2", 0]],
    list[int]: [3, 0],
    Scores: {"accuracy": 0.5, "loss": 1.25},
    list[float]: [0.1, 0.9],  # the lists of an `Aggregated` are parallel
    list[str]: ["", "share held at 0.5"],
    UpdateInfo[int, float]: UpdateInfo(3, 2, 40, 10.0, 0.5, 1.0, 0.75, 0.25),
}
KINDS = typing.get_args(trace.Event)


def example_of(kind):
    """An event of that kind, made from its annotations."""
    hints = typing.get_type_hints(kind)
    values = {name: EXAMPLES[hints[name]] for name in kind._fields}
    if kind is trace.ProcessStarted:
        values["format"] = trace.FORMAT
    return kind(**values)


def adopted(time_s, version=0, worker=1):
    return trace.Adopted(time_s=time_s, worker=worker, version=version, step=0)


def write(folder, name, events):
    """Writes a file of events as a process would, and returns its path."""
    before = set(folder.rglob("*"))
    writer = trace.TraceWriter(folder, name)
    for event in events:
        writer.write(event)
    writer.close()
    (path,) = (new for new in set(folder.rglob("*")) - before if new.is_file())
    return path


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@every_kind
def test_every_event_comes_back_from_its_line(kind):
    event = example_of(kind)
    back = trace.from_line(trace.to_line(event))
    assert back == event
    assert type(back) is kind


@every_kind
def test_every_event_is_one_line_of_json_that_names_its_kind(kind):
    line = trace.to_line(example_of(kind))
    assert "\n" not in line
    assert json.loads(line)["kind"] == kind.__name__


@every_kind
def test_every_event_comes_back_from_its_file(kind, tmp_path):
    write(tmp_path, "server", [example_of(kind)])
    assert trace.read(tmp_path) == [example_of(kind)]


def test_floats_come_back_to_the_last_bit():
    event = adopted(time_s=1_700_000_000.123456789)
    assert trace.from_line(trace.to_line(event)).time_s == event.time_s


MADE = trace.Aggregated(1.0, 1, 1, [[0, "a", 1]], [0], [0], [1.0], 0.1, ["held"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, []) for name in ("base_versions", "staleness", "coefficients")],
        ("updates", [[0, "a"]]),
        ("updates", [[0, 1, 1]]),
        ("updates", [["0", "a", 1]]),
        ("updates", {}),
        ("staleness", [None]),
        ("staleness", 5),
        ("coefficients", ["1"]),
        ("guards", ["a", "b"]),
        ("guards", [1]),
        ("guards", "a"),
    ],
)
def test_lists_are_parallel_and_of_their_types(field, value):
    assert trace.from_line(trace.to_line(MADE)) == MADE
    with pytest.raises(ValueError, match=r"not a trace event: .*Aggregated"):
        trace.from_line(trace.to_line(MADE._replace(**{field: value})))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "nonsense",
        "[]",
        "7",
        "null",
        "{}",
        '{"kind": "Unheard", "time_s": 1.0}',
        '{"kind": 3, "time_s": 1.0}',
        '{"kind": ["Adopted"], "time_s": 1.0}',
        '{"kind": "Adopted", "time_s": 1.0}',  # fields missing
        '{"time_s": 1.5, "worker": 2, "version": 7, "step": 40}',  # no kind
        '{"kind": "Stopped", "time_s": 1.0, "actor": "a", "reason": "b", "more": 1}',
        '{"kind": "Stopped", "time_s": NaN, "actor": "a", "reason": "b"}',
        '{"kind": "Stopped", "time_s": true, "actor": "a", "reason": "b"}',
        '{"kind": "Stopped", "time_s": 1.0, "actor": 7, "reason": "b"}',
        '{"kind": "Saved", "time_s": 1.0, "version": 1.5, "incarnation": 1}',
        '{"kind": "Saved", "time_s": 1.0, "version": null, "incarnation": 1}',
        '{"kind": "Saved", "time_s": 1.0, "version": 9007199254740993, '
        '"incarnation": 1}',
        '{"kind": "Stopped", "time_s": 1%s, "actor": "a", "reason": "b"}' % (400 * "0"),
    ],
)
def test_a_line_that_is_no_event_is_refused(line):
    with pytest.raises(ValueError, match="not a trace event"):
        trace.from_line(line)


def test_an_empty_folder_holds_no_events(tmp_path):
    assert trace.read(tmp_path) == []


def test_a_writer_makes_its_folder(tmp_path):
    folder = tmp_path / "run" / "trace"
    writer = trace.TraceWriter(folder, "server")
    writer.write(adopted(1.0))
    writer.close()
    assert trace.read(folder) == [adopted(1.0)]


def test_events_can_be_read_before_the_writer_is_closed(tmp_path):
    writer = trace.TraceWriter(tmp_path, "server")
    writer.write(adopted(1.0))
    events = trace.read(tmp_path)
    writer.close()
    assert events == [adopted(1.0)]


def test_the_events_of_all_files_come_back_by_time(tmp_path):
    write(tmp_path, "server", [adopted(1.0), adopted(4.0)])
    write(tmp_path, "worker-1", [adopted(2.0), adopted(3.0), adopted(5.0)])
    assert [event.time_s for event in trace.read(tmp_path)] == [1, 2, 3, 4, 5]


def test_events_of_one_process_at_one_time_keep_their_order(tmp_path):
    events = [adopted(1.0, version=version) for version in (3, 1, 2)]
    write(tmp_path, "worker-1", events)
    assert trace.read(tmp_path) == events


def recorded(time_s, incarnation=1):
    return trace.ProcessStarted(time_s, "worker-1", "run", incarnation, {})


def test_lives_of_a_process_stay_in_order_and_within_one_the_times_say_what_was_first(
    tmp_path,
):
    # The second life's clock is behind; in each, a thread wrote its event late.
    first = [recorded(5.0), adopted(7.0, version=2), adopted(6.0, version=1)]
    second = [recorded(1.0), adopted(3.0, version=4), adopted(2.0, version=3)]
    write(tmp_path, "worker-1", [*first, *second])
    write(tmp_path, "worker-2", [adopted(1.5, worker=2), adopted(3.0, worker=2)])
    events = trace.read(tmp_path)
    mine = [
        getattr(event, "version", "life")
        for event in events
        if getattr(event, "worker", 1) == 1
    ]
    assert mine == ["life", 1, 2, "life", 3, 4]
    assert len(events) == 8


def test_a_last_line_cut_short_anywhere_is_left_out(tmp_path):
    path = write(tmp_path, "worker-1", [adopted(1.0), adopted(2.0)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):  # the last byte is only the newline
        path.write_bytes(whole[:length])
        assert trace.read(tmp_path) == [adopted(1.0)], length


def test_a_last_line_cut_within_a_letter_is_left_out(tmp_path):
    stopped = trace.Stopped(time_s=2.0, actor="wörker", reason="é")
    path = write(tmp_path, "worker-1", [adopted(1.0), stopped])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert trace.read(tmp_path) == [adopted(1.0)], length


def test_a_first_line_cut_short_leaves_nothing(tmp_path):
    path = write(tmp_path, "worker-1", [adopted(1.0)])
    path.write_bytes(path.read_bytes()[:10])
    assert trace.read(tmp_path) == []


@pytest.mark.parametrize("garbage", ["garbage", '{"kind": "Adop', "", "\xff\xfe"])
def test_garbage_before_the_last_line_raises_with_file_and_line(tmp_path, garbage):
    write(tmp_path, "server", [adopted(1.0)])
    path = write(tmp_path, "worker-1", [adopted(1.0), adopted(2.0), adopted(3.0)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = garbage.encode("latin-1") + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"{path.name}\D+2\b"):
        trace.read(tmp_path)


def test_a_wall_clock_carries_monotonic_readings_over():
    clock = trace.WallClock()
    assert clock.at(12.5) - clock.at(10.0) == pytest.approx(2.5, abs=1e-6)


@every_kind
def test_a_wall_clock_stamps_every_time_of_an_event_and_nothing_else(kind):
    clock = trace.WallClock()
    event = example_of(kind)
    times = {name: clock.at(1.25) for name in ("time_s", "start_s")}
    expected = {name: times.get(name, value) for name, value in event._asdict().items()}
    assert clock.stamp(event) == kind(**expected)


def test_two_processes_of_one_name_do_not_write_into_one_file(tmp_path):
    """The first is thought dead, and is not."""
    first = trace.TraceWriter(tmp_path, "worker-3")
    first.write(trace.Evaluated(1.0, 1, {"accuracy": 0.5}))
    second = trace.TraceWriter(tmp_path, "worker-3")
    second.write(trace.Evaluated(2.0, 2, {"accuracy": 0.5}))
    first.write(trace.Evaluated(3.0, 3, {"accuracy": 0.5}))
    first.close()
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert [event.version for event in trace.read(tmp_path)] == [1, 2, 3]
    third = trace.TraceWriter(tmp_path, "worker-3")
    third.close()
    assert len(list(tmp_path.iterdir())) == 2, "the place is free again"


# ------------------------------------------------- traces of other formats

# The first line of traces that asyn2f 0.1 wrote, without its format up to format 1.
OLD_HEAD = """{"kind": "Recorded", "time_s": 1764200000.25, "actor": "server", \
"run": "run-20251127-1", "incarnation": 1, "environment": {"asyn2f": "0.1.0", \
"source": "3fbe7c21a0", "jax": "0.10.2"}, "format": 2}
"""
OLD = [(OLD_HEAD, "2"), (OLD_HEAD.replace(', "format": 2', ""), "1")]


@pytest.mark.parametrize(("head", "number"), OLD)
def test_a_trace_of_an_older_format_is_refused_by_every_reader(tmp_path, head, number):
    """With one line that names the version to use instead."""
    folder = tmp_path / "run"
    (folder / "trace").mkdir(parents=True)
    (folder / "run.json").write_text('{"run": "run-20251127-1"}')
    path = folder / "trace" / "server.jsonl"
    path.write_text(head + '{"kind": "Waited", "time_s": 1.0, "worker": 0}\n')
    write(tmp_path / "new" / "trace", "server", [adopted(1.0)])
    shutil.copy(folder / "run.json", tmp_path / "new")
    words = (
        rf"server\.jsonl.*: the trace has format {number}, written by asyn2f 0\.1\.0 "
        rf"\(source 3fbe7c21a0\), and this version reads format {trace.FORMAT} only: "
        "use that version$"
    )
    (folder / "config.json").write_text("{}")

    def resume():
        with claimed(folder, resume=True, overwrite=False):
            raise AssertionError("an old run was resumed")

    for read in (
        resume,
        lambda: trace.read(folder / "trace"),
        lambda: trace.read_valid(folder / "trace"),
        lambda: trace.read_valid(folder / "trace", max_bytes=10),
        lambda: trace.check_format(folder / "trace"),
        lambda: artifacts_of(folder),  # verify
        lambda: write_report(folder),
        lambda: [*collect(tmp_path / "new", [folder])],
    ):
        with pytest.raises(TraceFormatError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [trace.FORMAT + 1, 0, "two", None])
def test_an_unknown_format_is_refused_and_names_its_version(tmp_path, number):
    head = trace.ProcessStarted(0.0, "server", "run-1", 1, {"asyn2f": "0.9"}, number)
    write(tmp_path, "server", [head])
    with pytest.raises(TraceFormatError, match=r"format .* written by asyn2f 0\.9 "):
        trace.read(tmp_path)


# ------------------------------------------------- processes that no server let in


def test_a_process_that_was_never_let_in_is_left_out_beside_the_one_that_was(tmp_path):
    """Turned away while the first lives on, or long after the run's end."""
    first = [recorded(1.0), adopted(2.0), adopted(6.0, version=1)]
    write(tmp_path, "worker-1", first)
    refused = [recorded(4.0), trace.Stopped(99.0, "worker-1", "worker 1 is here")]
    write(tmp_path, "worker-1.2", refused)
    assert trace.read(tmp_path) == first
    (tmp_path / "worker-1.jsonl").unlink()
    assert trace.read(tmp_path) == refused


# ------------------------------------------------- links, and what is in the way


def test_no_line_is_written_through_a_link(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine\n")
    (folder / "trace").mkdir(parents=True)
    for name in ("trace/server.jsonl", "metrics.jsonl", "server.json"):
        (folder / name).symlink_to(victim)
    with pytest.raises(RunDirError, match=r"server.jsonl is a symbolic link to .*vic"):
        trace.TraceWriter(folder / "trace", "server")
    with pytest.raises(RunDirError, match=r"metrics.jsonl is a symbolic link to"):
        MetricsWriter(folder)
    beside = folder / f".server.json.{os.getpid()}"
    beside.symlink_to(victim)
    rundir.write_json(folder / "server.json", {"run": "run-1"})
    assert not (folder / "server.json").is_symlink()
    assert rundir.read_json(folder / "server.json") == {"run": "run-1"}
    assert victim.read_text() == "mine\n"


def test_a_store_writes_through_no_link(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "models"
    victim.write_text("mine\n")
    store = OrbaxStore(folder, write_ahead=True)
    (folder / "ahead").mkdir()
    (folder / "ahead" / "1.0.unfinished").symlink_to(victim)
    (folder / ".best.json").symlink_to(victim)
    store.save(1, state_of(1), {"version": 1})
    store.set_best(Best(1, "accuracy", 0.5))
    store.close()
    assert victim.read_text() == "mine\n"
    assert OrbaxStore(folder).best() == Best(1, "accuracy", 0.5)


def test_links_that_lead_nowhere_are_named(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    words = r"link is a symbolic link to .*nowhere; remove it"
    with pytest.raises(RunDirError, match=words):
        trace.TraceWriter(link, "server")
    with pytest.raises(StoreError, match=words):
        OrbaxStore(link / "models")
    claim = claimed(link / "run", resume=False, overwrite=False)
    with pytest.raises(RunDirError, match=words), claim:
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "at most .* files may be open .* raise ulimit -n"),
        (errno.ENOSPC, "no inodes left; delete some files"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_what_is_in_the_way_is_said_in_words(tmp_path, monkeypatch, number, words):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rundir, "_has_inodes", lambda path: False)
    store = OrbaxStore(tmp_path / "models", write_ahead=True)
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(RunDirError, match=words):
        trace.TraceWriter(tmp_path, "server")
    with pytest.raises(StoreError, match=words):
        store.save(1, state_of(1), {"version": 1})
    monkeypatch.undo()
    store.close()
