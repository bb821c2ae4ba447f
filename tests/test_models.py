import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.tasks import convolution, models
from asyn2f.tasks.convolution import Conv
from asyn2f.tasks.data import digits


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params["params"]))


def test_the_digits_mlp_has_2410_parameters():
    model = models.MLP((32,), 10)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    assert count(params) == 2410


def test_a_cnn_without_batch_norm_has_only_parameters():
    model = models.CNN((16, 32), 10)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    # 3*3*1*16+16, 3*3*16*32+32, and 4*4*32 inputs to 10 outputs
    assert count(params) == 160 + 4640 + 5130
    assert list(params) == ["params"]


@pytest.mark.parametrize(
    ("size", "stride", "cache"),
    [(3, 1, 1e6), (3, 2, 1e6), (4, 3, 1e6), (1, 2, 1e6), (3, 1, 0), (4, 3, 0)],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_both_convolutions_agree_in_value_and_gradient(
    size, stride, cache, padding, monkeypatch
):
    monkeypatch.setattr(convolution, "CACHE_BYTES", cache)  # 0: image by image
    lax = Conv(5, size, stride, padding, "lax")
    im2col = Conv(5, size, stride, padding, "im2col")
    x = jax.random.normal(jax.random.key(1), (2, 7, 9, 3))
    params = lax.init(jax.random.key(0), x)

    def run(conv):
        out, pull = jax.vjp(conv.apply, params, x)
        return out, pull(jnp.sin(out))

    for a, b in zip(
        jax.tree.leaves(run(lax)), jax.tree.leaves(run(im2col)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_auto_is_im2col_on_a_cpu():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params = Conv(4).init(jax.random.key(0), x)
    expected = Conv(4, impl="im2col").apply(params, x)
    assert jnp.array_equal(Conv(4).apply(params, x), expected)


def test_digits_are_split_without_overlap_and_scaled():
    data = digits()
    assert len(data.train["label"]) == 1437
    assert len(data.test["label"]) == 360
    images = np.concatenate([data.train["input"], data.test["input"]])
    assert images.shape == (1797, 8, 8, 1)
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert set(data.test["label"]) == set(range(10))
