import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.tasks import models
from asyn2f.tasks.data import digits
from asyn2f.tasks.models import Conv


def made(model, x):
    """Its parameters; compiled as one program, not operation by operation."""
    return jax.jit(lambda: model.init(jax.random.key(0), x, train=False))()


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params["params"]))


def test_the_digits_mlp_has_2410_parameters():
    model = models.MLP((32,), 10)
    params = jax.eval_shape(lambda: made(model, jnp.zeros((1, 8, 8, 1))))
    assert count(params) == 2410


def test_a_cnn_without_batch_norm_has_only_parameters():
    model = models.CNN((16, 32), 10)
    params = jax.eval_shape(lambda: made(model, jnp.zeros((1, 8, 8, 1))))
    # 3*3*1*16+16, 3*3*16*32+32, and 4*4*32 inputs to 10 outputs
    assert count(params) == 160 + 4640 + 5130
    assert list(params) == ["params"]


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "statistics"),
    [
        (models.resnet18(10), (32, 32, 3), 11_173_962, 9_600),
        (models.resnet20(100), (32, 32, 3), 279_012, 1_568),
        (models.resnet34(10), (32, 32, 3), 21_282_122, 17_024),
        (models.EmberNet(), (2381,), 49_705, 0),
        (models.SmallCNN((32, 64), (128,), 10), (32, 32, 3), 1_626_442, 0),
    ],
    ids=["resnet18", "resnet20", "resnet34", "ember", "small_cnn"],
)
def test_networks_have_the_sizes_that_are_published(
    model, inputs, parameters, statistics
):
    dtype = jnp.int32 if len(inputs) == 1 else jnp.float32
    x = jnp.zeros((2, *inputs), dtype)

    def applied():
        params = model.init(jax.random.key(0), x, train=False)
        return params, model.apply(params, x, train=False)

    params, logits = jax.eval_shape(applied)
    assert count(params) == parameters
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters + statistics
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32


def test_a_residual_network_learns_and_keeps_its_statistics():
    model = models.ResNet((1, 1), (4, 8), 3)
    x = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    params = made(model, x)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(trained):
        logits, changed = model.apply(
            {**params, "params": trained}, x, train=True, mutable=["batch_stats"]
        )
        return (logits**2).mean(), changed

    grads, changed = gradient(params["params"])
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    assert jax.tree.structure(changed["batch_stats"]) == jax.tree.structure(
        params["batch_stats"]
    )


def test_the_ember_network_has_the_softmax_of_one_logit():
    model = models.EmberNet()
    x = jax.random.randint(jax.random.key(1), (4, 2381), 0, 260)
    params = made(model, x)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = apply(params, x)
    assert not logits[:, 0].any()
    assert logits[:, 1].any()
    # The last features, which fill no stride, count too.
    other = apply(params, x.at[:, -1].set(7))
    grads = jax.jit(jax.grad(lambda p: model.apply(p, x, train=True).sum()))(params)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))
    assert other.shape == logits.shape


@pytest.mark.parametrize(
    ("size", "stride", "cache"),
    [(3, 1, 1e6), (3, 2, 1e6), (4, 3, 1e6), (1, 2, 1e6), (3, 1, 0), (4, 3, 0)],
)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_both_convolutions_agree_in_value_and_gradient(
    size, stride, cache, padding, monkeypatch
):
    monkeypatch.setattr(models, "CACHE_BYTES", cache)  # 0: image by image
    lax = Conv(5, size, stride, padding, "lax")
    im2col = Conv(5, size, stride, padding, "im2col")
    x = jax.random.normal(jax.random.key(1), (2, 7, 9, 3))
    params = jax.jit(lax.init)(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnums=0)
    def run(conv):
        out, pull = jax.vjp(conv.apply, params, x)
        return out, pull(jnp.sin(out))

    for a, b in zip(
        jax.tree.leaves(run(lax)), jax.tree.leaves(run(im2col)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_auto_is_im2col_on_a_cpu():
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params = jax.jit(Conv(4).init)(jax.random.key(0), x)
    expected = jax.jit(Conv(4, impl="im2col").apply)(params, x)
    assert jnp.array_equal(jax.jit(Conv(4).apply)(params, x), expected)


def test_digits_are_split_without_overlap_and_scaled():
    data = digits()
    assert len(data.train["label"]) == 1437
    assert len(data.test["label"]) == 360
    images = np.concatenate([data.train["input"], data.test["input"]])
    assert images.shape == (1797, 8, 8, 1)
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert set(data.test["label"]) == set(range(10))
