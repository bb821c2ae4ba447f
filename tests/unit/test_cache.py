"""The cache of arrays: made once, remade when something has changed, never half."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyn2f.tasks.cache import cached_arrays

ROOT = Path(__file__).parents[2]


class Derived:
    """Arrays derived from a file in `folder`, and how often they were made."""

    def __init__(self, folder: Path, cache: Path, content: str = "123") -> None:
        self.source, self.cache = folder / "source", cache
        self.count = 0
        folder.mkdir(exist_ok=True)
        self.source.write_text(content)

    def make(self, folder: Path) -> None:
        self.count += 1
        numbers = [int(digit) for digit in self.source.read_text()]
        np.save(folder / "one.npy", np.array(numbers))
        np.save(folder / "two.npy", -np.array(numbers))

    def read(self, **settings: Any) -> list[list[int]]:
        found = cached_arrays("some", [self.source], settings, self.make, self.cache)
        assert list(found) == ["one", "two"]
        return [array.tolist() for array in found.values()]


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "made" / "cache"


@pytest.fixture
def derived(tmp_path, cache) -> Derived:
    return Derived(tmp_path / "sources", cache)


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_arrays_are_made_once_and_then_kept(derived, cache):
    for _ in range(3):
        assert derived.read() == [[1, 2, 3], [-1, -2, -3]]
    assert derived.count == 1
    (name,) = entries(cache)
    assert name.startswith("some-")


def test_they_are_memory_mapped_and_cannot_be_changed(derived, cache):
    found = cached_arrays("some", [derived.source], {}, derived.make, cache)
    for array in found.values():
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("by", ["size", "time"])
def test_a_changed_source_is_read_anew(derived, by):
    derived.read()
    before = derived.source.stat()
    derived.source.write_text("4567" if by == "size" else "456")
    time_ns = before.st_mtime_ns + (10**9 if by == "time" else 0)
    os.utime(derived.source, ns=(time_ns, time_ns))
    assert derived.read()[0][:3] == [4, 5, 6]
    assert derived.count == 2


def test_settings_are_kept_apart(derived):
    derived.read(bins=3)
    derived.read(bins=4)
    derived.read(bins=3)
    assert derived.count == 2


def test_sources_that_differ_by_their_path_alone_are_kept_apart(tmp_path, cache):
    sets = [Derived(tmp_path / name, cache, name * 3) for name in ("1", "2")]
    for one in sets:
        os.utime(one.source, ns=(10**18, 10**18))
    for _ in range(2):
        assert [one.read()[0] for one in sets] == [[1, 1, 1], [2, 2, 2]]


def test_so_are_those_of_one_relative_path(tmp_path, cache, monkeypatch):
    found = []
    for name in ("1", "2"):
        one = Derived(tmp_path / name, cache, name * 3)
        os.utime(one.source, ns=(10**18, 10**18))
        monkeypatch.chdir(one.source.parent)
        one.source = Path("source")
        found.append(one.read()[0])
    assert found == [[1, 1, 1], [2, 2, 2]]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flipped,
    "absent": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_made_anew(derived, cache, damage):
    derived.read()
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert len(files) == 3
    for made, file in enumerate(files, start=2):
        damage(file)
        assert derived.read() == [[1, 2, 3], [-1, -2, -3]]
        assert derived.count == made, file
    derived.read()
    assert derived.count == made
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_making_leaves_nothing(derived, cache, error):
    def interrupted(folder: Path) -> None:
        derived.make(folder)
        raise error

    with pytest.raises(error):
        cached_arrays("some", [derived.source], {}, interrupted, cache)
    assert entries(cache) == []
    assert derived.read()[0] == [1, 2, 3]


def test_a_cache_that_cannot_be_written_is_an_os_error(derived, tmp_path):
    (tmp_path / "file").write_text("in the way")  # a mode would not stop root
    derived.cache = tmp_path / "file" / "cache"
    with pytest.raises(OSError, match="file"):
        derived.read()
    assert (tmp_path / "file").read_text() == "in the way"


# ------------------------------------------------------------- several processes

_READER = """
import os, sys
from pathlib import Path
import numpy as np
from asyn2f.tasks.cache import cached_arrays

source, cache, number = sys.argv[1:]
if number:
    os.getpid = lambda: int(number)

def make(folder):
    np.save(folder / "one.npy", np.arange(3))
    print("making", flush=True)
    sys.stdin.readline()
    np.save(folder / "two.npy", -np.arange(3))

found = cached_arrays("some", [Path(source)], {}, make, Path(cache))
print([array.tolist() for array in found.values()])
"""


class Reader:
    """A process that reads, and pauses in the midst of making."""

    def __init__(self, source: Path, cache: Path, number: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, source, cache, number],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_until_making(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "making\n", self.process.communicate()

    def finish(self) -> str:
        out, err = self.process.communicate("\n")
        assert self.process.returncode == 0, err
        return out.strip()

    def kill(self) -> None:
        with self.process as process:
            process.kill()


@pytest.fixture
def reader(derived, cache):
    readers: list[Reader] = []

    def start(number: str = "") -> Reader:
        readers.append(Reader(derived.source, cache, number))
        return readers[-1]

    yield start
    for one in readers:
        one.kill()


@pytest.mark.parametrize("number", ["", "7"], ids=["one host", "two, of one pid"])
@pytest.mark.parametrize("is_damaged", [False, True], ids=["", "damaged"])
def test_two_processes_that_make_it_at_once_both_read_what_is_right(
    derived, cache, reader, number, is_damaged
):
    if is_damaged:
        derived.read()
        for file in cache.rglob("*.npy"):
            flipped(file)
    both = [reader(number), reader(number)]
    for one in both:  # before either has ended
        one.wait_until_making()
    for one in both:
        assert one.finish() == "[[0, 1, 2], [0, -1, -2]]"
    assert len(entries(cache)) == 1
    assert derived.read() == [[0, 1, 2], [0, -1, -2]]
    assert derived.count == int(is_damaged)


def test_a_process_killed_while_making_does_no_harm(derived, reader):
    killed = reader()
    killed.wait_until_making()
    killed.kill()
    for _ in range(2):
        assert derived.read()[0] == [1, 2, 3]
    assert derived.count == 1
