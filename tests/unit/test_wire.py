import contextlib
import tracemalloc
import typing

import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from asyn2f import errors, serialization
from asyn2f.protocol import messages as wire
from asyn2f.protocol import wire_format
from asyn2f.serialization import template_of
from asyn2f.types import MAX_SCORES, Scores, UpdateInfo

KINDS = typing.get_args(wire.Message)

names = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
_FIELDS = {
    int: st.integers(-(2**62), 2**62),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=100).map(
        lambda text: "".join(c for c in text if c.isprintable())
    ),
    tuple[int, ...]: st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
}
_FIELDS[Scores] = st.dictionaries(
    st.text(min_size=1, max_size=16).filter(str.isprintable),
    _FIELDS[float],
    max_size=32,
)
_FIELDS[UpdateInfo[int, float]] = st.builds(
    UpdateInfo, *[_FIELDS[kind] for kind in wire_format.INFO_FIELDS.values()]
)
_FIELDS[wire.WorkerProgress] = st.builds(
    wire.WorkerProgress,
    *[_FIELDS[h] for h in typing.get_type_hints(wire.WorkerProgress).values()],
)
_FIELDS[tuple[str, ...]] = st.lists(_FIELDS[str], max_size=4).map(tuple)


def messages() -> st.SearchStrategy:
    def build(kind):
        hints = typing.get_type_hints(kind)
        fields = {
            name: names if name in ("run", "session") else _FIELDS[hint]
            for name, hint in hints.items()
        }
        if kind is wire.Hello:  # of another protocol nothing else is understood
            fields["protocol"] = st.just(wire.PROTOCOL)
        return st.builds(kind, **fields)

    return st.one_of([build(kind) for kind in KINDS])


@given(messages())
def test_every_message_comes_back_as_it_was(message):
    again = wire_format.decode(wire_format.encode(message))
    assert again == message
    assert type(again) is type(message)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_fits_its_header(kind):
    longest = {int: 2**62, bool: True, float: 1.0, str: "é" * 300, tuple[int, ...]: ()}
    longest[tuple[str, ...]] = ()
    longest[Scores] = {f"{place:064}": 1.0 for place in range(MAX_SCORES)}
    longest[wire.WorkerProgress] = wire.WorkerProgress("é" * 300, *[2**62] * 7)
    longest[UpdateInfo[int, float]] = UpdateInfo(
        *[longest[kind] for kind in wire_format.INFO_FIELDS.values()]
    )
    hints = typing.get_type_hints(kind)
    values = [
        "n" * 64 if n in ("run", "session") else longest[h] for n, h in hints.items()
    ]
    assert len(wire_format.encode(kind(*values))) <= wire_format.MAX_HEADER_BYTES


@given(messages(), st.data())
@settings(max_examples=300)
def test_a_mutated_header_is_refused_or_still_a_message(message, data):
    """Never another exception, whatever one byte more, less or else does."""
    frame = bytearray(wire_format.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame)))
        action = data.draw(st.sampled_from(["flip", "insert", "delete", "cut"]))
        if action == "insert":
            frame.insert(place, data.draw(st.integers(0, 255)))
        elif action == "cut":
            del frame[place:]
        elif place < len(frame):
            if action == "flip":
                frame[place] ^= 1 << data.draw(st.integers(0, 7))
            else:
                del frame[place]
    with contextlib.suppress(errors.WireError):
        assert isinstance(wire_format.decode(bytes(frame)), KINDS)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(frame):
    with pytest.raises(errors.WireError):
        wire_format.decode(frame)


HEADER = wire.ModelHeader("run", 1, 2, 1.0, 0.5, 1.0, 0.1, "f", 8, "d")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\x91" * 5000, "header of 5000 bytes"),
        (msgpack.packb({"kind": "HeartbeatAck"}), "not msgpack|not a list"),
        (msgpack.packb(["Explode", 1]), "unknown kind"),
        (msgpack.packb(["HeartbeatAck", 1]), "1 fields, has 3"),
        (msgpack.packb(["HeartbeatAck", 1, 2, True, 3]), "4 fields, has 3"),
        (msgpack.packb(["HeartbeatAck", True, 1, True]), "is not an integer"),
        (msgpack.packb(["HeartbeatAck", 2**63, 1, True]), "is not an integer"),
        (msgpack.packb(["HeartbeatAck", "1", 1, True]), "is not an integer"),
        (msgpack.packb(["UpdateReceived", "../../etc", 1]), "is not a name"),
        (msgpack.packb(["UpdateReceived", "a" * 65, 1]), "is not a name"),
        (msgpack.packb(["UpdateReceived", "x\x00", 1]), "is not a name"),
        (msgpack.packb(["StopRun", 1, 5]), "is not text"),
        (msgpack.packb(["EvalResult", "e", 1, 5]), "is not a list"),
        (msgpack.packb(["EvalResult", "e", 1, [5]]), "not a name and a float"),
        (msgpack.packb(["EvalResult", "e", 1, [["f1", 1]]]), "not a name and a float"),
        (msgpack.packb(["EvalResult", "e", 1, [["", 1.0]]]), "found the name"),
        (msgpack.packb(["EvalResult", "e", 1, [["a" * 65, 1.0]]]), "found the name"),
        (msgpack.packb(["EvalResult", "e", 1, [["a\n", 1.0]]]), "found the name"),
        (msgpack.packb(["EvalResult", "e", 1, [["a", 1.0]] * 2]), "found a twice"),
        (
            msgpack.packb(["EvalResult", "e", 1, [[f"{k}", 1.0] for k in range(33)]]),
            "found 33 numbers",
        ),
        (msgpack.packb(["StopRun", 1, b"bytes"]), "not msgpack|is not text"),
        (wire_format.encode(HEADER._replace(loss=float("nan"))), "loss: is not finite"),
        (msgpack.packb([*["HeartbeatAck"], [[[[1]]]], 1, True]), "is not an integer"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xc6\xff\xff\xff\xff", "not msgpack"),
    ],
)
def test_a_wrong_header_is_refused_with_a_reason(frame, words):
    with pytest.raises(errors.WireError, match=words):
        wire_format.decode(frame)


def test_a_diverged_worker_can_say_so():
    progress = wire.NO_PROGRESS._replace(loss=float("nan"))
    heartbeat = wire.Heartbeat("s", 1, progress, 0, True, True, 0, ())
    assert np.isnan(wire_format.decode(wire_format.encode(heartbeat)).progress.loss)


MODEL = {
    "params": {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(2.5) * np.ones((), np.float32),
        "half": np.arange(3, dtype=ml_dtypes.bfloat16),
    },
    "batch_stats": {"count": np.array([1, 2], np.int32), "odd": np.ones(5, np.uint8)},
}
TEMPLATE = template_of(MODEL)


def test_a_model_comes_back_bit_for_bit_without_copying():
    payload = serialization.encode_params(MODEL)
    again = serialization.decode_params(TEMPLATE, payload)
    for name in ("w", "empty", "scalar", "half"):
        found, sent = again["params"][name], MODEL["params"][name]
        assert found.dtype == sent.dtype
        assert found.tobytes() == sent.tobytes()
    assert again["batch_stats"]["odd"].tobytes() == b"\1" * 5
    assert not again["params"]["w"].flags.owndata


def test_jax_arrays_are_encoded_like_numpy_ones():
    as_jax = {"w": jnp.arange(4.0)}
    as_numpy = {"w": np.arange(4, dtype=np.float32)}
    assert serialization.encode_params(as_jax) == serialization.encode_params(as_numpy)


def test_what_is_sent_cannot_change_afterwards():
    payload = serialization.encode_params(MODEL)
    assert payload.readonly
    with pytest.raises(TypeError):
        payload[0] = 1


def header_of(payload, template=TEMPLATE) -> wire.ModelHeader:
    return HEADER._replace(
        fingerprint=template.fingerprint,
        num_bytes=payload.nbytes,
        digest=serialization.digest(payload),
    )


def test_a_payload_that_fits_its_header_passes():
    payload = serialization.encode_params(MODEL)
    wire_format.decompress(header_of(payload), payload, TEMPLATE)


@given(st.integers(0, TEMPLATE.num_bytes - 1), st.integers(0, 7))
def test_every_flipped_bit_of_a_payload_is_noticed(place, bit):
    payload = serialization.encode_params(MODEL)
    damaged = bytearray(payload)
    damaged[place] ^= 1 << bit
    with pytest.raises(errors.WireError, match="damaged"):
        wire_format.decompress(header_of(payload), damaged, TEMPLATE)


def test_another_size_or_tree_is_refused_before_anything_is_read():
    payload = serialization.encode_params(MODEL)
    header = header_of(payload)
    with pytest.raises(errors.WireError, match="bytes"):
        wire_format.decompress(header, payload[:-1], TEMPLATE)
    with pytest.raises(errors.WireError, match="bytes"):
        wire_format.decompress(header._replace(num_bytes=2**60), payload, TEMPLATE)
    with pytest.raises(errors.WireError, match="other arrays"):
        wire_format.decompress(header._replace(fingerprint="x"), payload, TEMPLATE)
    with pytest.raises(errors.WireError, match="bytes"):
        serialization.decode_params(TEMPLATE, b"")


def packable(size: int = 4096):
    """A model that zstd makes shorter, its template, header and bytes."""
    model = {"w": np.zeros(size // 4, np.float32)}
    template, payload = template_of(model), serialization.encode_params(model)
    return template, header_of(payload, template), payload


def test_what_was_packed_is_unpacked_to_the_same_bits():
    template, header, payload = packable()
    frame = wire_format.compress(payload)
    assert len(frame) < 100
    assert wire_format.decompress(header, frame, template) == payload


def test_what_packing_makes_no_shorter_stays_as_it_is():
    payload = np.random.default_rng(0).bytes(1000)
    assert wire_format.compress(payload) is payload


@given(st.data())
def test_every_damage_of_what_was_packed_is_noticed(data):
    template, header, payload = packable()
    frame = bytearray(wire_format.compress(payload))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        unpacked = wire_format.decompress(header, bytes(frame), template)
    except errors.WireError:
        return
    assert unpacked == payload


def test_a_bomb_is_refused_before_any_memory_is_taken():
    """Frames of a gibibyte of zeros: one that says so, one that does not, one that says
    it is as long as the model, and one that wants a window of half a gibibyte."""
    template, header, _ = packable()
    zeros = bytes(1 << 20)
    says = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
    bomb = b"".join([says.compress(zeros) for _ in range(1 << 10)]) + says.flush()
    silent = zstandard.ZstdCompressor(level=1, write_content_size=False)
    lying = bytearray(zstandard.ZstdCompressor(level=1).compress(bytes(4096)))
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=29)
    long = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    for frame in (
        bomb[:4000],
        silent.compress(zeros),
        bytes(lying) + bytes(lying),
        long.compress(zeros) + long.flush(),
        b"\x28\xb5\x2f\xfd",
    ):
        tracemalloc.start()
        with pytest.raises(errors.WireError):
            wire_format.decompress(header, frame, template)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 1 << 20


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_array_that_is_not_finite_is_named(bad):
    spoiled = {
        "a": np.ones(3, np.float32),
        "b": {"c": np.array([0, bad, 1], np.float32)},
    }
    assert serialization.nonfinite_leaf(spoiled) == "b/c"
    assert serialization.nonfinite_leaf(MODEL) == ""
