"""The files of a trace: the one that is written, and those that are full, packed.

    worker-3.part0001.jsonl.zst  worker-3.part0002.jsonl.zst  worker-3.jsonl

Lines pack to a twelfth or less, so that weeks of a run stay readable.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d{4,})")
_PACKED = ".jsonl.zst"
_PLAIN = ".jsonl"
_MOST_HEAD = 18  # bytes of a zstd frame in which its size is said


def files_of(folder: Path) -> dict[str, list[Path]]:
    """By the name of each process, its files in the order in which they were written.

    A kill may leave a part both packed and plain, or a part that is the file which is
    written still: each counts once.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in sorted([*folder.glob(f"*{_PLAIN}"), *folder.glob(f"*{_PACKED}")]):
        stem = path.name.removesuffix(_PACKED).removesuffix(_PLAIN)
        part = _PART.fullmatch(stem)
        name, number = (part["name"], int(part["number"])) if part else (stem, -1)
        is_packed = path.name.endswith(_PACKED)
        if is_packed or number not in found.setdefault(name, {}):
            found.setdefault(name, {})[number] = path
    result = {}
    for name, by_number in sorted(found.items()):
        last = by_number.pop(-1, None)
        parts = [by_number[number] for number in sorted(by_number)]
        if last is not None:
            parts = [part for part in parts if not part.samefile(last)]
        result[name] = parts if last is None else [*parts, last]
    return result


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their ends; one piece of it at a time.

    Raises:
      ValueError: it is packed, and damaged.
    """
    with path.open("rb") as file:
        if not path.name.endswith(_PACKED):
            for line in file:
                yield line.rstrip(b"\r\n")
            return
        size = size_of(path)
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
                for line in io.BufferedReader(unpacked):
                    size -= len(line)
                    yield line.rstrip(b"\r\n")
        except zstandard.ZstdError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if size or not size_of(path):
            raise ValueError(f"{path} is damaged: lines of it are missing")


def size_of(path: Path) -> int:
    """Bytes of its lines."""
    if not path.name.endswith(_PACKED):
        return path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_MOST_HEAD)
    try:
        return max(zstandard.frame_content_size(head), 0)
    except zstandard.ZstdError:
        return 0


def lines_from(paths: Sequence[Path], skipped: int) -> Iterator[bytes]:
    """The lines that begin behind so many bytes of these files together. Raises as
    `lines_of`."""
    for path in paths:
        size = size_of(path)
        if size < skipped:
            skipped -= size
            continue
        for line in lines_of(path):
            if skipped <= 0:
                yield line
            skipped -= len(line) + 1


def next_part(path: Path) -> Path:
    """What the file is to be called when it is full."""
    name = path.name.removesuffix(_PLAIN)
    parts = [_PART.fullmatch(x.name.split(_PLAIN)[0]) for x in path.parent.iterdir()]
    numbers = [int(part["number"]) for part in parts if part and part["name"] == name]
    return path.with_name(f"{name}.part{max(numbers, default=0) + 1:04d}{_PLAIN}")


def end_rotation(path: Path) -> None:
    """Undoes a rotation that a kill has cut short: a part that is this very file."""
    for part in path.parent.glob(f"*.part*{_PLAIN}"):
        with contextlib.suppress(FileNotFoundError):
            if part.samefile(path):
                part.unlink()


def pack(part: Path) -> None:
    """Replaces a part by its packed form. What goes wrong leaves it as it is."""
    beside = part.with_name(f".{part.name}.zst.tmp")
    try:
        beside.unlink(missing_ok=True)
        with part.open("rb") as plain, beside.open("xb") as packed:
            size = os.fstat(plain.fileno()).st_size
            packer = zstandard.ZstdCompressor(level=3, write_checksum=True)
            packer.copy_stream(plain, packed, size)
            packed.flush()
            os.fsync(packed.fileno())
        beside.rename(part.with_name(f"{part.name}.zst"))
        part.unlink()
    except OSError as error:
        logging.warning("cannot pack %s: %s", part, error.strerror)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
