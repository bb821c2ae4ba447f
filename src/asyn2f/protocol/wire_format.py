"""Messages as bytes: headers of at most 4 KiB as msgpack, payloads raw or as zstd.

Nothing is ever unpickled. Whatever is wrong with a message is a `WireError` with a
reason, and nothing else is raised. Sizes are compared with the template of the model
before anything is allocated.
"""

import math
import re
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgpack
import zstandard

from asyn2f.errors import WireError
from asyn2f.protocol.messages import (
    PROTOCOL,
    Hello,
    Message,
    ModelHeader,
    UpdateHeader,
    WorkerProgress,
)
from asyn2f.serialization import Template, digest
from asyn2f.types import Buffer, Float, Int, Scores, UpdateInfo, scores_problem

MAX_HEADER_BYTES = 4096
_MAX_TEXT = 512  # bytes
_MAX_LIST = 128
_INT_LIMIT = 2**62
_LEAST_WINDOW = 1 << 20  # bytes that zstd requires for any frame
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

_KINDS: dict[str, Callable[..., Message]] = {
    kind.__name__: kind for kind in Message.__args__
}
_HINTS = {name: get_type_hints(kind) for name, kind in _KINDS.items()}
_NUMBERS: dict[Any, type] = {Int: int, Float: float}
INFO_FIELDS = {n: _NUMBERS[hint] for n, hint in get_type_hints(UpdateInfo).items()}
"""The type of each field of an `UpdateInfo` in a message."""
_NESTED: dict[Any, tuple[Callable[..., Any], dict[str, Any]]] = {
    UpdateInfo[int, float]: (UpdateInfo, INFO_FIELDS),
    WorkerProgress: (WorkerProgress, get_type_hints(WorkerProgress)),
}
_NAMES = {"run", "session"}  # become parts of topics and file names
# Training may diverge, and be reported as such.
_MAY_BE_NAN = {"Heartbeat", "UpdateHeader", "EvalResult"}


def encode(message: Message) -> bytes:
    """The message as msgpack: its kind and its fields in order. Long texts are cut, and
    unprintable characters become spaces."""
    return bytes(msgpack.packb([type(message).__name__, *map(_sent, message)]))


def published_bytes(topic: bytes, header: Message, payload: Buffer) -> int:
    """The size of a published message: topic, header and payload."""
    return len(topic) + len(encode(header)) + memoryview(payload).nbytes


def _sent(field: Any) -> Any:
    if isinstance(field, dict):
        field = tuple(field.items())
    if isinstance(field, tuple):
        return [*map(_sent, field)]
    if not isinstance(field, str):
        return field
    line = "".join(c if c.isprintable() else " " for c in field[:_MAX_TEXT])
    return line.encode("utf-8", "replace")[:_MAX_TEXT].decode("utf-8", "ignore")


def decode(data: Buffer) -> Message:
    """The message that `encode` made; every field has its declared type. Floats are
    finite, except in heartbeats, updates and scores, which are validated where they are
    used. Texts are printable, one line each: they are shown in terminals, logs and
    reports. Raises WireError for anything else.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(data)} bytes, allowed {MAX_HEADER_BYTES}")
    try:
        parts = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            max_array_len=_MAX_LIST,
            max_str_len=_MAX_TEXT,
            max_map_len=0,
            max_bin_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen kinds
        raise WireError(f"header is not msgpack: {type(error).__name__}") from None
    if not isinstance(parts, tuple) or not parts or not isinstance(parts[0], str):
        raise WireError("header is not a list that begins with its kind")
    kind = _KINDS.get(parts[0])
    if kind is None:
        # Without its name, as reasons are counted.
        raise WireError("unknown kind of message")
    hints = _HINTS[parts[0]]
    if kind is Hello and _is_of_another_protocol(parts):
        return _OTHER_PROTOCOL._replace(protocol=parts[1])
    if len(parts) - 1 != len(hints):
        raise WireError(f"{parts[0]} with {len(parts) - 1} fields, has {len(hints)}")
    fields = [*parts[1:]]
    for index, (name, hint) in enumerate(hints.items()):
        problem = _problem(name, hint, fields[index], parts[0] not in _MAY_BE_NAN)
        if problem:
            raise WireError(f"{parts[0]}.{name}: {problem}")
        if hint in _NESTED:
            fields[index] = _NESTED[hint][0](*fields[index])
        if hint == Scores:
            fields[index] = dict(fields[index])
    return kind(*fields)


def _is_of_another_protocol(parts: tuple[Any, ...]) -> bool:
    """Whether only the protocol number of a `Hello` can be understood."""
    number = parts[1] if len(parts) > 1 else None
    return type(number) is int and number != PROTOCOL and 0 <= number < _INT_LIMIT


_OTHER_PROTOCOL = Hello(
    protocol=0,
    role="",
    worker=-1,
    session="-",
    first=-1,
    token="",
    fingerprint="",
    coding="",
    num_examples=0,
    quality=0.0,
    data="",
    terms=(),
)


def _problem(name: str, hint: Any, value: Any, finite: bool) -> str:
    """What is wrong with a field, or ""."""
    if hint is float:
        if not isinstance(value, float):
            return "is not a float"
        if finite and not math.isfinite(value):
            return "is not finite"
    elif hint is int:
        if type(value) is not int or abs(value) > _INT_LIMIT:
            return "is not an integer of a sane size"
    elif hint is bool:
        if type(value) is not bool:
            return "is not true or false"
    elif hint is str:
        if not isinstance(value, str):
            return "is not text"
        if name in _NAMES and not _NAME.match(value):
            return "is not a name of 1 to 64 letters, digits, _ and -"
        if not value.isprintable():
            return "is not printable"
    elif not isinstance(value, tuple):
        return "is not a list"
    elif hint == Scores:
        return _scores_problem(value)
    elif hint in _NESTED:
        _, hints = _NESTED[hint]
        if len(value) != len(hints):
            return f"has {len(value)} fields, expected {len(hints)}"
        for (inner, kind), item in zip(hints.items(), value, strict=True):
            if problem := _problem(inner, kind, item, finite):
                return f"{inner} {problem}"
    else:
        (kind, _) = get_args(hint)
        problems = (_problem("", kind, item, finite) for item in value)
        return next((f"an item {problem}" for problem in problems if problem), "")
    return ""


def _scores_problem(pairs: tuple[Any, ...]) -> str:
    """What is wrong with a list of names and values, or ""."""
    for pair in pairs:
        if not isinstance(pair, tuple) or [*map(type, pair)] != [str, float]:
            return "has an item that is not a name and a float"
    return scores_problem(name for name, _ in pairs)


# ------------------------------------------------------------- payloads


def compress(payload: Buffer) -> Buffer:
    """The payload as a zstd frame, level 1, if that is shorter; else as it is. Its
    header describes the uncompressed payload."""
    frame = zstandard.ZstdCompressor(level=1).compress(payload)
    return frame if len(frame) < memoryview(payload).nbytes else payload


def decompress(
    header: ModelHeader | UpdateHeader, payload: Buffer, template: Template
) -> Buffer:
    """The uncompressed payload of a header, which fits the template; a shorter one is a
    zstd frame, which has to declare the size of its content.

    Raises:
      WireError: another size or tree, or damaged bytes.
    """
    size = memoryview(payload).nbytes
    if header.fingerprint != template.fingerprint:
        raise WireError("the model has other arrays than ours: different configs?")
    if header.num_bytes != template.num_bytes or size > template.num_bytes:
        raise WireError(
            f"payload of {size} bytes, {header.num_bytes} by its header, "
            f"the model has {template.num_bytes}"
        )
    if size < template.num_bytes:
        payload = _decompress(payload, template.num_bytes)
    if digest(payload) != header.digest:
        raise WireError("payload is damaged: its digest differs")
    return payload


def _decompress(frame: Buffer, size: int) -> bytes:
    """The content of a zstd frame, if it is of that size. Raises WireError."""
    found = f"payload of {memoryview(frame).nbytes} bytes, the model has {size}"
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WireError(f"{found}, and it is not a zstd frame of them")
        decompressor = zstandard.ZstdDecompressor(
            max_window_size=max(size, _LEAST_WINDOW)
        )
        content = decompressor.decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise WireError(f"{found}, and its zstd frame is damaged: {error}") from None
    if len(content) != size:
        raise WireError(f"{found}, and its zstd frame holds {len(content)}")
    return content
