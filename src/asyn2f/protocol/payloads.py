"""Payloads on the wire: the bytes of a model, as they are or as a zstd frame.

Both sides know the template of the model, so sizes are compared before anything is
allocated.
"""

import zstandard

from asyn2f.errors import WireError
from asyn2f.protocol.messages import (
    ModelHeader,
    UpdateHeader,
)
from asyn2f.serialization import Template, digest
from asyn2f.types import Buffer

_LEAST_WINDOW = 1 << 20  # zstd asks for some whatever the size


def packed(payload: Buffer) -> Buffer:
    """The payload as a zstd frame, level 1, if that is shorter; else as it is. Its
    header stays the one of what was packed."""
    frame = zstandard.ZstdCompressor(level=1).compress(payload)
    return frame if len(frame) < memoryview(payload).nbytes else payload


def unpacked(
    header: ModelHeader | UpdateHeader, payload: Buffer, template: Template
) -> Buffer:
    """The payload that its header speaks of, which fits the template; what is shorter
    than that is a zstd frame.

    A frame has to say how long its content is, and that has to be what the template
    says, before any memory is taken for it.

    Raises:
      WireError: other size, other tree, or damaged bytes.
    """
    size = memoryview(payload).nbytes
    if header.fingerprint != template.fingerprint:
        raise WireError("the model has other arrays than ours: different configs?")
    if header.num_bytes != template.num_bytes or size > template.num_bytes:
        raise WireError(
            f"payload of {size} bytes, its header says {header.num_bytes}, "
            f"the model has {template.num_bytes}"
        )
    if size < template.num_bytes:
        payload = _content(payload, template.num_bytes)
    if digest(payload) != header.digest:
        raise WireError("payload is damaged: its digest is another")
    return payload


def _content(frame: Buffer, size: int) -> bytes:
    """What is in a zstd frame, if it is of that size. Raises WireError."""
    said = f"payload of {memoryview(frame).nbytes} bytes, the model has {size}"
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WireError(f"{said}, and it is no zstd frame of so many")
        most = zstandard.ZstdDecompressor(max_window_size=max(size, _LEAST_WINDOW))
        content = most.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{said}, and its zstd frame is damaged: {error}") from None
    if len(content) != size:
        raise WireError(f"{said}, and its zstd frame holds {len(content)}")
    return content
