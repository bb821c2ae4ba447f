"""Models to bytes and back, against copying the bytes.

Encoding joins all arrays in one buffer; decoding makes views. What a receiver does
besides is shown apart: the digest, the look for what is not finite, and the way onto
the device.
"""

from collections.abc import Iterator

import jax
import numpy as np

from asyn2f.runtime import payloads
from asyn2f.trees import template_of
from tests.bench.figures import Figure, compared, in_turns
from tests.bench.kernels import resnet18_params

ROUNDS = 15
COPY = "a copy of the bytes, by numpy"


def measure() -> Iterator[Figure]:
    model = resnet18_params(0)
    template = template_of(model)
    payload = payloads.encode_params(model)
    array = np.frombuffer(payload, np.uint8)
    views = payloads.decode_params(template, payload)
    candidates = {
        COPY: array.copy,
        "encode": lambda: payloads.encode_params(model),
        "encode + decode": lambda: payloads.decode_params(
            template, payloads.encode_params(model)
        ),
        "digest": lambda: payloads.digest(payload),
        "is all finite": lambda: payloads.nonfinite_leaf(views),
        "onto the device": lambda: jax.block_until_ready(payloads.to_device(views)),
    }
    turns = in_turns(candidates, ROUNDS)
    for what in list(candidates)[1:]:
        wanted = 2.0 if what == "encode + decode" else None
        yield compared(f"{what}, ResNet-18", turns, what, COPY, wanted)
