"""Traces of weeks: full files are compressed, and read as one."""

import os

import pytest
import zstandard

from asyn2f import trace
from asyn2f.trace import segments
from tests.support.patience import PATIENCE_S
from tests.unit.test_trace import adopted, recorded


@pytest.fixture
def full(monkeypatch):
    """Files are full after some ten lines, and all compressed when closed."""
    monkeypatch.setattr(trace.writer, "FULL_BYTES", 1000)
    monkeypatch.setattr(trace.writer, "_PACKING_S", PATIENCE_S)


def written(folder, count, name="worker-1", first=0):
    writer = trace.TraceWriter(folder, name)
    events = [recorded(float(first))]
    events += [adopted(float(n), version=n) for n in range(first + 1, first + count)]
    for event in events:
        writer.write(event)
    writer.close()
    return events


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_full_is_packed_and_all_is_read(tmp_path, full):
    events = written(tmp_path, 200)
    assert trace.read(tmp_path) == events
    (paths,) = segments.files_of(tmp_path).values()
    assert len(paths) > 10
    assert [path.name for path in paths[:2]] == [
        "worker-1.part0001.jsonl.zst",
        "worker-1.part0002.jsonl.zst",
    ]
    assert paths[-1].name == "worker-1.jsonl"
    assert len(names(tmp_path)) == len(paths), "nothing else is left"
    lines = [trace.to_line(event).encode() for event in events]
    assert sum(map(segments.size_of, paths)) == sum(len(line) + 1 for line in lines)
    for skipped in (0, 1, 5000, 10**9):
        kept = list(segments.lines_from(paths, skipped))
        assert kept == lines[len(lines) - len(kept) :]
        assert (len(kept) < len(lines)) == (skipped > 0)


def test_a_process_goes_on_in_new_files(tmp_path, full):
    first = written(tmp_path, 50)
    second = written(tmp_path, 50, first=100)
    assert trace.read(tmp_path) == [*first, *second]
    assert [len(life) for life in trace.lives_in(*_files(tmp_path))] == [50, 50]


def _files(folder):
    (paths,) = segments.files_of(folder).values()
    return paths


def test_two_processes_of_one_name_do_not_mix(tmp_path, full):
    writers = [trace.TraceWriter(tmp_path, "worker-1") for _ in range(2)]
    events = [[recorded(0.0)], [recorded(0.5)]]
    for n in range(1, 60):
        for number, own in enumerate(events):
            own.append(adopted(n + number / 2, version=n))
    for own, writer in zip(events, writers, strict=True):
        for event in own:
            writer.write(event)
        writer.close()
    files = segments.files_of(tmp_path)
    assert list(files) == ["worker-1", "worker-1.2"]
    assert [[*trace.lives_in(*paths)] for paths in files.values()] == [
        [x] for x in events
    ]


def test_a_kill_at_any_place_of_a_rotation_loses_and_doubles_nothing(tmp_path, full):
    events = written(tmp_path, 30)
    path = tmp_path / "worker-1.jsonl"
    part = segments.next_part(path)
    # Linked, and not yet replaced; then a process goes on, and its file is full.
    os.link(path, part)
    assert trace.read(tmp_path) == events
    events += written(tmp_path, 30, first=100)
    assert trace.read(tmp_path) == events
    # Packed, and the plain one still there; or packed in part.
    packed = _files(tmp_path)[0]
    plain = packed.with_name(packed.name.removesuffix(".zst"))
    plain.write_bytes(zstandard.ZstdDecompressor().decompress(packed.read_bytes()))
    assert trace.read(tmp_path) == events
    packed.rename(packed.with_name(f".{plain.name}.zst.tmp"))
    assert trace.read(tmp_path) == events
    segments.pack(plain)
    assert trace.read(tmp_path) == events
    assert packed.exists()
    assert not plain.exists()


def test_a_part_that_is_compressed_after_it_was_listed_is_read(tmp_path):
    """As of a run that is still going on."""
    events = written(tmp_path, 30)
    path = tmp_path / "worker-1.jsonl"
    part = segments.next_part(path)
    path.rename(part)
    (listed,) = _files(tmp_path)
    size = segments.size_of(listed)
    segments.pack(part)
    assert listed.name.endswith(".jsonl")
    assert not listed.exists()
    assert trace.lives_in(listed) == [events]
    assert segments.size_of(listed) == size


def test_where_no_file_can_be_begun_the_old_one_is_written_on(
    tmp_path, full, monkeypatch, caplog
):
    def fail(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)  # a file system that knows no links
    events = written(tmp_path, 200)
    assert trace.read(tmp_path) == events
    assert names(tmp_path) == ["worker-1.jsonl"]
    assert 1 <= len(caplog.records) <= 6, "not with every line"


def test_damage_is_named_and_a_report_does_without(tmp_path, full):
    events = written(tmp_path, 100)
    packed = _files(tmp_path)[2]
    content = packed.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for wrong in (content[:-9], content[: len(content) // 2], b"", flipped):
        packed.write_bytes(wrong)
        with pytest.raises(ValueError, match=packed.name):
            trace.read(tmp_path)
    found = trace.read_valid(tmp_path)
    assert events[0] in found.events
    assert sum(found.invalid.values()) >= 1


def test_lines_pack_to_an_eighth_or_less(tmp_path, monkeypatch):
    monkeypatch.setattr(trace.writer, "FULL_BYTES", 100_000)
    written(tmp_path, 20_000)
    sizes = {path: path.stat().st_size for path in _files(tmp_path)[:-1]}
    unpacked = sum(map(segments.size_of, sizes))
    print(f"{unpacked / sum(sizes.values()):.1f} to 1")
    assert sum(sizes.values()) < unpacked / 8
