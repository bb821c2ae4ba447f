"""The files of a trace: one being written, and full ones, which are compressed.

    worker-3.part0001.jsonl.zst  worker-3.part0002.jsonl.zst  worker-3.jsonl

Lines compress to a twelfth or less, so that the trace of weeks stays readable.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import zstandard

_PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d{4,})")
_PACKED = ".jsonl.zst"
_PLAIN = ".jsonl"
_FRAME_HEADER_BYTES = 18  # at most: of a zstd frame


def files_of(folder: Path) -> dict[str, list[Path]]:
    """The files of each process in the order in which they were written, by its name.

    After a kill, a part may exist both plain and compressed, or be a hard link to the
    file still being written: each counts once.
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
            parts = [part for part in parts if not _is_same(part, last)]
        result[name] = parts if last is None else [*parts, last]
    return result


def _is_same(part: Path, last: Path) -> bool:
    try:
        return part.samefile(last)
    except FileNotFoundError:  # compressed meanwhile
        return False


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, read piece by piece.

    Raises:
      ValueError: it is compressed, and damaged.
    """
    file, is_packed = _open(path)
    with file:
        if not is_packed:
            for line in file:
                yield line.rstrip(b"\r\n")
            return
        size = whole = _unpacked_size(file)
        try:
            with zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
                for line in io.BufferedReader(unpacked):
                    size -= len(line)
                    yield line.rstrip(b"\r\n")
        except zstandard.ZstdError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if size or not whole:
            raise ValueError(f"{path} is damaged: lines are missing")


def size_of(path: Path) -> int:
    """The uncompressed size of a file in bytes; 0 if it is damaged."""
    file, is_packed = _open(path)
    with file:
        return _unpacked_size(file) if is_packed else os.fstat(file.fileno()).st_size


def _open(path: Path) -> tuple[BinaryIO, bool]:
    """The file, and whether it is compressed, which may happen once it is listed."""
    is_packed = path.name.endswith(_PACKED)
    try:
        return path.open("rb"), is_packed
    except FileNotFoundError:
        if is_packed:
            raise
        return path.with_name(f"{path.name}.zst").open("rb"), True


def _unpacked_size(file: BinaryIO) -> int:
    head = file.read(_FRAME_HEADER_BYTES)
    file.seek(0)
    try:
        return max(zstandard.frame_content_size(head), 0)
    except zstandard.ZstdError:
        return 0


def lines_from(paths: Sequence[Path], skipped: int) -> Iterator[bytes]:
    """The lines after the first `skipped` bytes of these files. Raises as
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
    """The name of the next part, for a file that is full."""
    name = path.name.removesuffix(_PLAIN)
    parts = [_PART.fullmatch(x.name.split(_PLAIN)[0]) for x in path.parent.iterdir()]
    numbers = [int(part["number"]) for part in parts if part and part["name"] == name]
    return path.with_name(f"{name}.part{max(numbers, default=0) + 1:04d}{_PLAIN}")


def end_rotation(path: Path) -> None:
    """Undoes a rotation interrupted by a kill: removes a part that is this file."""
    for part in path.parent.glob(f"*.part*{_PLAIN}"):
        with contextlib.suppress(FileNotFoundError):
            if part.samefile(path):
                part.unlink()


def pack(part: Path) -> None:
    """Replaces a part by its compressed form; leaves it as it is if that fails."""
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
        logging.warning("cannot compress %s: %s", part, error.strerror)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
