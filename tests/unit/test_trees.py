"""Templates, fingerprints and digests."""

import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import serialization


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def model():
    return {
        "params": {"dense": {"kernel": zeros(2, 3), "bias": zeros(3)}},
        "batch_stats": {"mean": zeros(3, dtype=np.float16), "count": np.int32(4)},
    }


def fingerprint(params):
    return serialization.template_of(params).fingerprint


def test_a_template_lists_the_leaves_in_tree_order():
    leaves = serialization.template_of(model()).leaves
    assert [(leaf.path, leaf.shape, leaf.dtype) for leaf in leaves] == [
        ("batch_stats/count", (), np.dtype(np.int32)),
        ("batch_stats/mean", (3,), np.dtype(np.float16)),
        ("params/dense/bias", (3,), np.dtype(np.float32)),
        ("params/dense/kernel", (2, 3), np.dtype(np.float32)),
    ]


def test_a_leaf_knows_its_bytes():
    # int32 [], float16 [3], float32 [3], float32 [2, 3]
    leaves = serialization.template_of(model()).leaves
    assert [leaf.num_bytes for leaf in leaves] == [4, 6, 12, 24]


def test_a_template_knows_the_bytes_of_the_whole():
    assert serialization.template_of(model()).num_bytes == 4 + 6 + 12 + 24


def test_num_bytes_counts_all_leaves():
    assert serialization.num_bytes(model()) == 4 + 6 + 12 + 24


def test_an_empty_array_has_no_bytes():
    assert serialization.template_of({"w": zeros(0, 3)}).num_bytes == 0


def test_bfloat16_takes_two_bytes():
    assert (
        serialization.template_of({"w": zeros(5, dtype=jnp.bfloat16)}).num_bytes == 10
    )


def test_a_template_can_rebuild_the_tree():
    template = serialization.template_of(model())
    names = jax.tree.unflatten(
        template.treedef, [leaf.path for leaf in template.leaves]
    )
    assert names["params"]["dense"]["bias"] == "params/dense/bias"


def test_shapes_without_numbers_have_the_same_template():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, model()))
    assert serialization.template_of(shapes) == serialization.template_of(model())


def test_numpy_and_jax_arrays_have_the_same_template():
    on_device = jax.tree.map(jnp.asarray, model())
    assert serialization.template_of(on_device) == serialization.template_of(model())


def test_numbers_do_not_change_a_fingerprint():
    assert fingerprint({"w": np.float32([1, 2])}) == fingerprint({"w": zeros(2)})


@pytest.mark.parametrize(
    "other",
    [
        {"v": zeros(2, 3)},  # another path
        {"w": {"w": zeros(2, 3)}},  # deeper
        {"w": zeros(3, 2)},  # another shape, as many bytes
        {"w": zeros(6)},  # another rank, as many bytes
        {"w": zeros(2, 3, 1)},
        {"w": zeros(2, 3, dtype=np.int32)},  # another dtype, as many bytes
        {"w": zeros(2, 3, dtype=np.float16)},
        {"w": zeros(2, 3), "v": zeros(0)},  # a leaf more, no byte more
    ],
)
def test_path_shape_and_dtype_change_a_fingerprint(other):
    assert fingerprint(other) != fingerprint({"w": zeros(2, 3)})


def test_half_precision_dtypes_have_different_fingerprints():
    half, brain = zeros(2, dtype=np.float16), zeros(2, dtype=jnp.bfloat16)
    assert fingerprint({"w": half}) != fingerprint({"w": brain})


def test_two_leaves_cannot_trade_shapes_unnoticed():
    one = {"a": zeros(2), "b": zeros(3)}
    other = {"a": zeros(3), "b": zeros(2)}
    assert fingerprint(one) != fingerprint(other)


def test_the_digest_is_that_of_the_little_endian_floats_in_tree_order():
    params = {"b": np.float32([1.5, -2]), "a": np.float32(0.25)}
    expected = hashlib.sha256(struct.pack("<3f", 0.25, 1.5, -2)).hexdigest()
    assert serialization.params_sha256(params) == expected


def test_the_digest_of_one_zero_is_the_known_one():
    # $ head -c 4 /dev/zero | sha256sum
    assert serialization.params_sha256({"w": zeros(1)}) == (
        "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
    )


def test_other_dtypes_are_digested_as_float32():
    params = {"a": np.array(3, np.int32), "b": np.array([0.5], jnp.bfloat16)}
    expected = hashlib.sha256(struct.pack("<2f", 3, 0.5)).hexdigest()
    assert serialization.params_sha256(params) == expected


def test_the_digest_reads_arrays_in_their_logical_order():
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    columns = np.asfortranarray(rows)
    big_endian = rows.astype(">f4")
    digests = {
        serialization.params_sha256({"w": w}) for w in (rows, columns, big_endian)
    }
    assert len(digests) == 1


def test_numpy_and_jax_arrays_have_the_same_digest():
    params = {"w": np.float32([1, 2, 3])}
    on_device = jax.tree.map(jnp.asarray, params)
    assert serialization.params_sha256(params) == serialization.params_sha256(on_device)


def test_one_bit_changes_the_digest():
    one = np.float32(1)
    assert serialization.params_sha256({"w": one}) != serialization.params_sha256(
        {"w": np.nextafter(one, np.float32(2))}
    )


def test_an_empty_array_adds_nothing_to_the_digest():
    params = {"a": zeros(0, 3), "b": np.float32([1])}
    assert serialization.params_sha256(params) == serialization.params_sha256(
        {"b": np.float32([1])}
    )
