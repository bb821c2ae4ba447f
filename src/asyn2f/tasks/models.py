"""The networks, in Flax; and a convolution with a choice of implementation.

Each maps inputs [B, ...] and `train` to logits f32 [B, num_classes]. Parameters are
float32 whatever the `dtype` of the computation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

# About the size of a core's second-level cache.
CACHE_BYTES = 2**20

ConvImpl = Literal["auto", "lax", "im2col"]


class Conv(nn.Module):
    """A 2-d convolution with a choice of implementation, of the same parameters.

    `lax` is XLA's. `im2col` gathers patches for one matrix product: on a CPU, the
    gradient of XLA's convolution inside `scan`, `map` or `cond` is many times slower.
    `auto` is im2col on a CPU and lax elsewhere. [B, H, W, C] in, [B, H', W', features]
    out: H' is H / stride with "SAME" padding, (H - kernel_size + 1) / stride with
    "VALID".
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"
    impl: ConvImpl = "auto"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        impl = self.impl
        if impl == "auto":
            impl = "im2col" if jax.default_backend() == "cpu" else "lax"
        if impl == "lax":
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=self.padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        else:
            if self.padding == "SAME":
                pads = [_same_pads(n, size, self.stride) for n in x.shape[1:3]]
                x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
            y = _im2col(x, kernel, self.stride)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return y + bias.astype(self.dtype)[None, None, None]


def _im2col(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] and [size, size, C, F] -> [B, H', W', F], without padding."""
    size, features = kernel.shape[0], kernel.shape[-1]
    kernel = kernel.reshape(-1, features)
    patches = _patches(x, size, stride)
    if patches.size * patches.dtype.itemsize <= CACHE_BYTES:
        return patches @ kernel
    # Image by image; the backward pass gathers the patches again.
    one = jax.checkpoint(
        lambda x: _patches(x[None], size, stride)[0] @ kernel, prevent_cse=False
    )
    return jax.lax.map(one, x)


def _patches(x: jax.Array, size: int, stride: int) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', size * size * C], in the order of a HWIO kernel."""
    counts = [(n - size) // stride + 1 for n in x.shape[1:3]]
    rows, columns = ((n - 1) * stride + 1 for n in counts)
    return jnp.concatenate(
        [
            x[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )


def _same_pads(length: int, size: int, stride: int) -> tuple[int, int]:
    """Padding before and after of "SAME"."""
    count = -(-length // stride)
    total = max((count - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


class MLP(nn.Module):
    """Dense layers with ReLU between; 64-32-10 on digits has 2,410 parameters."""

    hidden: Sequence[int]
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        return _logits(x, self.num_classes, self.dtype)


class CNN(nn.Module):
    """Convolutions with ReLU, of stride 2 but for the first, and one dense layer. With
    `batch_norm` there are running statistics."""

    channels: Sequence[int]
    num_classes: int
    batch_norm: bool = False
    conv_impl: ConvImpl = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for layer, channels in enumerate(self.channels):
            stride = 1 if layer == 0 else 2
            x = Conv(channels, stride=stride, impl=self.conv_impl, dtype=self.dtype)(x)
            if self.batch_norm:
                x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype)(x)
            x = nn.relu(x)
        return _logits(x.reshape(x.shape[0], -1), self.num_classes, self.dtype)


class SmallCNN(nn.Module):
    """The small network of federated benchmarks (LEAF, FedJAX, pfl-research).

    Two convolutions 3x3 without padding, max-pooling 2x2, one hidden dense layer,
    dropout 0.25 and 0.5. With 32 and 64 channels and 128 units it has 1,626,442
    parameters on 32x32x3.
    """

    channels: Sequence[int]
    hidden: Sequence[int]
    num_classes: int
    conv_impl: ConvImpl = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = partial(Conv, padding="VALID", impl=self.conv_impl, dtype=self.dtype)
        for channels in self.channels:
            x = nn.relu(conv(channels)(x))
        batch, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        # In blocks, because the gradient of a windowed maximum is slow on a CPU.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = x.reshape(batch, -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return _logits(x, self.num_classes, self.dtype)


class _Block(nn.Module):
    """Two convolutions 3x3 beside a shortcut, which is a convolution 1x1 where the
    shape changes."""

    channels: int
    stride: int
    conv: Any
    norm: Any
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(self.conv, self.channels, use_bias=self.use_bias)
        y = nn.relu(self.norm()(conv(stride=self.stride)(x)))
        y = self.norm()(conv()(y))
        if self.stride != 1 or x.shape[-1] != self.channels:
            x = self.conv(self.channels, 1, self.stride, use_bias=False)(x)
            x = self.norm()(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network for small images (He et al., 2016) of two-convolution blocks,
    after one convolution 3x3; the first block of every stage but the first has stride
    2; mean pooling at the end. See `resnet18`, `resnet20` and `resnet34`."""

    blocks: Sequence[int]  # of each stage
    channels: Sequence[int]  # of each stage
    num_classes: int
    use_bias: bool = False
    conv_impl: ConvImpl = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        conv = partial(Conv, kernel_init=init, impl=self.conv_impl, dtype=self.dtype)
        norm = partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        x = conv(self.channels[0], use_bias=self.use_bias)(x)
        x = nn.relu(norm()(x))
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                x = _Block(self.channels[stage], stride, conv, norm, self.use_bias)(x)
        return _logits(x.mean(axis=(1, 2)), self.num_classes, self.dtype)


resnet18 = partial(ResNet, (2, 2, 2, 2), (64, 128, 256, 512))
"""11,173,962 parameters for ten classes, 9,600 running statistics."""

resnet34 = partial(ResNet, (3, 4, 6, 3), (64, 128, 256, 512))
"""21,282,122 parameters for ten classes, 17,024 running statistics."""

resnet20 = partial(ResNet, (3, 3, 3), (16, 32, 64), use_bias=True)
"""279,012 parameters for a hundred classes, 1,568 running statistics: as in the paper's
count, its convolutions 3x3 have biases, which normalisation makes redundant."""


class EmberNet(nn.Module):
    """A malware classifier on features in bins (the paper's; after MalConv, Raff et
    al., 2018): 49,705 parameters.

    An embedding 261x8, a gated convolution over 15 features at a stride of 15 with 128
    channels, their maxima, a hidden layer of 128, one logit z, returned as the logits
    (0, z), whose softmax is the sigmoid of z. The last stride is padded with an index
    of its own. Inputs are integers [B, features] in [0, 260).
    """

    num_classes: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        bins, window, dense = 260, 15, partial(nn.Dense, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % window)), constant_values=bins)
        x = nn.Embed(bins + 1, 8, dtype=self.dtype)(x)
        x = x.reshape(x.shape[0], -1, window * 8)  # a convolution as a product
        x = dense(128)(x) * nn.sigmoid(dense(128)(x))
        x = nn.relu(dense(128)(x.max(axis=1)))
        z = _logits(x, 1, self.dtype)
        return jnp.concatenate([jnp.zeros_like(z), z], axis=-1)


def _logits(x: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    return nn.Dense(num_classes, dtype=dtype)(x).astype(jnp.float32)
