"""Models to bytes and back, against copying the bytes.

Encoding joins all arrays in one buffer; decoding makes views. What a receiver does
besides is shown apart: the digest, the look for what is not finite, and the way onto
the device.
"""

from collections.abc import Iterator

import jax
import numpy as np

from asyn2f import serialization
from asyn2f.serialization import template_of
from tests.bench.figures import Figure, compared, in_turns
from tests.bench.kernels import resnet18_params

ROUNDS = 15
COPY = "a copy of the bytes, by numpy"


def measure() -> Iterator[Figure]:
    model = resnet18_params(0)
    template = template_of(model)
    payload = serialization.encode_params(model)
    array = np.frombuffer(payload, np.uint8)
    views = serialization.decode_params(template, payload)
    candidates = {
        COPY: array.copy,
        "encode": lambda: serialization.encode_params(model),
        "encode + decode": lambda: serialization.decode_params(
            template, serialization.encode_params(model)
        ),
        "digest": lambda: serialization.digest(payload),
        "is all finite": lambda: serialization.nonfinite_leaf(views),
        "onto the device": lambda: jax.block_until_ready(
            serialization.to_device(views)
        ),
    }
    turns = in_turns(candidates, ROUNDS)
    for what in list(candidates)[1:]:
        wanted = 2.0 if what == "encode + decode" else None
        yield compared(f"{what}, ResNet-18", turns, what, COPY, wanted)
