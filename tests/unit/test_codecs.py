"""Codecs: errors of entries, and the sums of sent changes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyn2f.kernels.codecs import (
    Coding,
    check_coding,
    problem_of,
    update_codec,
    version_codec,
)
from asyn2f.kernels.quantisation import (
    Fragment,
    Quantised,
    Sparse,
    largest,
    placed,
    quantised,
    restored,
    spread,
)
from asyn2f.serialization import template_of

SIZE = 12  # entries, so that everything is compiled once
# Of one division in float32.
ROUNDING = 2.0**-22

floats = st.floats(-1e4, 1e4, width=32).map(
    lambda x: 0.0 if abs(x) < 1e-6 else float(np.float32(x))
)
arrays = st.lists(floats, min_size=SIZE, max_size=SIZE).map(
    lambda values: jnp.array(values, jnp.float32)
)


def model(x, statistic=7.0):
    """A Flax dictionary: a leaf of some size, one too small for places, one of counts,
    and a statistic."""
    params = {"w": x.reshape(3, 4), "b": x[:1], "n": jnp.array([3, 4], jnp.int32)}
    return {"params": params, "batch_stats": {"mean": jnp.full(2, statistic)}}


SHAPES = jax.eval_shape(model, jax.ShapeDtypeStruct((SIZE,), jnp.float32))
CODINGS = {
    "bfloat16": Coding(updates="bfloat16"),
    "int8": Coding(updates="int8"),
    "bfloat16 delta": Coding(updates="bfloat16", delta=True),
    "int8 delta": Coding(updates="int8", delta=True),
    "topk": Coding(updates="topk", topk_share=0.25),
    "fragments": Coding(updates="fragments", fragments=5),  # the last one is padded
}
every_coding = pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)


def codec_for(coding, pushes_models=True, keeps_model=False):
    codec = update_codec(coding, SHAPES, pushes_models, keeps_model)
    return codec._replace(encode=jax.jit(codec.encode), decode=jax.jit(codec.decode))


CODECS = {name: codec_for(coding) for name, coding in CODINGS.items()}
SUMS = codec_for(CODINGS["topk"], pushes_models=False)
TURNS = codec_for(CODINGS["fragments"], pushes_models=False)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


# ------------------------------------------------------------- entries


@given(arrays)
def test_bfloat16_keeps_eight_bits(x):
    codec = CODECS["bfloat16"]
    coded, _ = codec.encode(model(x), (), ())
    found = codec.decode(coded, ())
    error = np.abs(found["params"]["w"] - model(x)["params"]["w"])
    assert (error <= 2.0**-8 * np.abs(model(x)["params"]["w"])).all()


@given(arrays)
def test_int8_is_off_by_half_a_scale_at_most(x):
    coded = quantised(x)
    error = np.abs(np.asarray(restored(coded)) - np.asarray(x))
    assert (error <= 0.5 * float(coded.scale) * (1 + ROUNDING * 127)).all()


@given(arrays)
def test_a_scale_is_the_next_of_eight_bits(x):
    most = float(jnp.max(jnp.abs(x)))
    assume(most > 0)
    scale = float(quantised(x).scale)
    assert (1 - ROUNDING) * most / 127 <= scale <= (1 + 2.0**-7) * most / 127 + 1e-37


@jax.jit
def fused(base, coded):
    return base + restored(coded)


@given(arrays, arrays)
def test_no_bit_depends_on_how_operations_are_fused(x, base):
    coded = quantised(x)
    exact = np.asarray(coded.values, np.float64) * float(coded.scale)
    np.testing.assert_array_equal(np.asarray(restored(coded), np.float64), exact)
    np.testing.assert_array_equal(
        fused(base, coded), np.asarray(base) + np.asarray(exact, "f4")
    )


@given(arrays, st.sampled_from([1, 5, SIZE]))  # each is compiled
def test_the_largest_are_sent_and_nothing_else(x, count):
    sent = largest(x, count)
    whole = np.asarray(spread(sent, (SIZE,)))
    left = np.delete(np.abs(np.asarray(x)), np.asarray(sent.places))
    assert problem_of(sent, [SIZE]) == ""
    assert problem_of(quantised(x), [SIZE]) == ""
    assert left.max(initial=0.0) <= np.abs(sent.values).min()
    np.testing.assert_array_equal(whole[sent.places], np.asarray(x)[sent.places])
    assert np.count_nonzero(whole) <= count


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_coding
def test_what_is_not_finite_does_not_become_finite(coding, bad):
    codec = codec_for(coding)
    params = model(jnp.arange(SIZE, dtype=jnp.float32).at[5].set(bad))
    base = model(jnp.ones(SIZE))
    coded, _ = codec.encode(params, base, codec.blank())
    found = codec.decode(coded, base)["params"]["w"]
    assert not np.isfinite(found).all()


# ------------------------------------------------------------- models


def test_float32_is_the_identity():
    codec = update_codec(Coding(), SHAPES, True, True)
    params = model(jnp.arange(SIZE, dtype=jnp.float32))
    coded, memory = codec.encode(params, (), ())
    assert codec.is_plain
    assert coded is params
    assert memory == ()
    assert codec.decode(coded, ()) is params


@every_coding
def test_statistics_and_counts_travel_as_they_are(coding):
    codec = codec_for(coding)
    params, base = model(jnp.ones(SIZE) / 3, 0.1), model(jnp.zeros(SIZE), 5.0)
    coded, _ = codec.encode(params, base, codec.blank())
    found = codec.decode(coded, base)
    assert_same(found["batch_stats"], params["batch_stats"])
    assert_same(found["params"]["n"], params["params"]["n"])
    assert jax.tree.structure(found) == jax.tree.structure(params)


@pytest.mark.parametrize("name", ["bfloat16 delta", "int8 delta", "topk", "fragments"])
@given(x=arrays)
def test_a_model_that_is_its_base_comes_back(name, x):
    codec = CODECS[name]
    coded, _ = codec.encode(model(x), model(x), codec.blank())
    assert_same(codec.decode(coded, model(x)), model(x))


@given(arrays)
def test_bfloat16_twice_is_bfloat16_once(x):
    codec = CODECS["bfloat16"]
    once = codec.decode(codec.encode(model(x), (), ())[0], ())
    assert_same(codec.decode(codec.encode(once, (), ())[0], ()), once)


@every_coding
def test_there_and_back_in_one_program_is_the_same(coding):
    codec = codec_for(coding)
    params, base = model(jnp.linspace(-1, 2, SIZE)), model(jnp.ones(SIZE) / 3)

    @jax.jit
    def whole(params, base):
        return codec.decode(codec.encode(params, base, codec.blank())[0], base)

    coded, _ = codec.encode(params, base, codec.blank())
    assert_same(whole(params, base), codec.decode(coded, base))


@every_coding
def test_a_coded_model_is_smaller_and_its_size_does_not_depend_on_it(coding):
    codec = codec_for(coding)
    sizes = set()
    for value in (0.0, 1e-3):
        params, base = model(jnp.full(SIZE, value)), model(jnp.zeros(SIZE))
        sizes.add(template_of(codec.encode(params, base, codec.blank())[0]).num_bytes)
    (size,) = sizes
    assert size < template_of(SHAPES).num_bytes


def test_versions_need_no_base_and_no_memory():
    for name in ("bfloat16", "int8"):
        codec = version_codec(Coding(versions=name), SHAPES)
        assert not codec.needs_base
        assert codec.blank() == ()


# ------------------------------------------------------------- error feedback


@given(arrays, arrays)
def test_what_is_sent_and_what_is_kept_are_what_was_wanted(x, kept):
    memory = model(kept)["params"]
    coded, after = SUMS.encode(model(x), (), memory)
    sent = SUMS.decode(coded, ())["params"]
    for name in ("w", "b"):
        wanted = model(x)["params"][name] + memory[name]
        np.testing.assert_array_equal(sent[name] + after[name], wanted)
        assert not np.any((sent[name] != 0) & (after[name] != 0))


@given(st.lists(arrays, min_size=1, max_size=6))
def test_what_was_sent_adds_up_to_the_changes_but_for_what_is_kept(changes):
    changes = [jnp.round(x) for x in changes]  # whole numbers: sums are exact
    memory, total = SUMS.blank(), jnp.zeros((3, 4))
    for change in changes:
        coded, memory = SUMS.encode(model(change), (), memory)
        total = total + SUMS.decode(coded, ())["params"]["w"]
    expected = sum(change.reshape(3, 4) for change in changes)
    np.testing.assert_array_equal(total + memory["w"], expected)


def residual(memory):
    return memory[1] if isinstance(memory, tuple) and memory else memory


@pytest.mark.parametrize("name", ["topk", "fragments"])
def test_a_worker_that_keeps_its_model_keeps_no_residual(name):
    def has_residual(**kinds):
        return residual(codec_for(CODINGS[name], **kinds).blank()) != ()

    assert not has_residual(keeps_model=True)
    assert has_residual(keeps_model=False)
    assert has_residual(pushes_models=False, keeps_model=True)


@pytest.mark.parametrize("codec", [SUMS, TURNS], ids=["topk", "fragments"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_residual_is_finite_whatever_was_pushed(codec, bad):
    _, memory = codec.encode(model(jnp.full(SIZE, bad)), (), codec.blank())
    coded, _ = codec.encode(model(jnp.ones(SIZE)), (), memory)
    assert np.isfinite(codec.decode(coded, ())["params"]["w"]).all()


@given(st.lists(arrays, min_size=5, max_size=5))
def test_every_entry_is_sent_once_in_as_many_pushes_as_fragments(changes):
    changes = [jnp.round(x) for x in changes]  # whole numbers: sums are exact
    memory, sent = TURNS.blank(), []
    for number, change in enumerate(changes):
        coded, memory = TURNS.encode(model(change), (), memory)
        assert int(coded["params"]["w"].number) == number
        assert problem_of(coded, template_of(SHAPES).sizes) == ""
        sent.append(TURNS.decode(coded, ())["params"]["w"].reshape(-1))
    for number, values in enumerate(sent):
        until_now = np.asarray(sum(changes[: number + 1]))
        span = slice(3 * number, 3 * number + 3)  # of 12 entries: 3, 3, 3, 3 and none
        expected = np.zeros(SIZE, np.float32)
        expected[span] = until_now[span]
        np.testing.assert_array_equal(values, expected)
    assert int(memory[0]) == 0


# ------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("coding", "words"),
    [
        (Coding(updates="int4"), "updates: found 'int4', allowed"),
        (Coding(versions="topk"), "versions: found 'topk', allowed"),
        (Coding(topk_share=0.0), "topk_share: found 0.0, allowed"),
        (Coding(topk_share=0.6), "topk_share: found 0.6, allowed"),
        (Coding(fragments=1), "fragments: found 1, allowed"),
        (Coding(delta=True), "delta: found True"),
        (Coding(updates="fragments", delta=True), "delta: found True"),
    ],
)
def test_a_coding_that_makes_no_sense_is_refused(coding, words):
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(")):
        check_coding(coding)


@pytest.mark.parametrize("places", [[2, 1], [1, 1], [-1, 0], [0, 4], [3, 2**31 - 1]])
def test_invalid_places_are_reported(places):
    coded = {"w": Sparse(np.ones(2, np.float32), np.array(places, np.int32))}
    assert "places" in problem_of(coded, [4])


@pytest.mark.parametrize("scale", [0.0, -1.0, 2e37 * 127, np.inf, -np.inf, np.nan])
def test_invalid_scales_are_reported(scale):
    coded = Quantised(np.ones(3, np.int8), np.array(scale, ml_dtypes.bfloat16))
    assert "scale" in problem_of({"v": np.ones(9), "w": coded}, [9, 3])


@pytest.mark.parametrize("number", [-1, 1000, 2**31 - 1])
def test_an_invalid_fragment_is_reported(number):
    coded = Fragment(np.ones(2, np.float32), np.array(number, np.int32))
    assert problem_of(coded, [4]) == f"fragment {number}, allowed: 0 to 999"


def test_a_fragment_beyond_the_last_changes_nothing():
    coded = Fragment(jnp.ones(2), jnp.int32(7))
    assert not placed(coded, 2, (4,)).any()


def test_an_invalid_value_is_reported():
    coded = Quantised(np.array([-128], np.int8), np.array(1.0, ml_dtypes.bfloat16))
    assert "-128" in problem_of(coded, [1])


@pytest.mark.parametrize(
    ("coding", "text"),
    [
        (Coding(), "updates float32, versions float32"),
        (Coding(updates="topk"), "updates topk 0.1, versions float32"),
        (Coding(updates="fragments"), "updates fragments 4, versions float32"),
        (
            Coding(updates="int8", delta=True, versions="bfloat16"),
            "updates int8 of changes, versions bfloat16",
        ),
    ],
)
def test_a_coding_as_text(coding, text):
    """As a refusal names it."""
    assert str(coding) == text
