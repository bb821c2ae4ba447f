"""The networks, in Flax."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

# A core's second-level cache has so much, about: what is larger goes through memory.
CACHE_BYTES = 2**20

ConvImpl = Literal["auto", "lax", "im2col"]


class Conv(nn.Module):
    """A 2-d convolution with bias whose arithmetic can be chosen, not its parameters.

    `lax` is XLA's own. `im2col` gathers the patches and multiplies once: on a CPU, the
    gradient of XLA's convolution inside `scan`, `map` or `cond` misses its fast path
    and runs many times slower, a matrix product does not. `auto` is im2col on a CPU and
    lax elsewhere. [B, H, W, C] in, [B, H', W', features] out: H' is H / stride with
    "SAME" padding, (H - kernel_size + 1) / stride with "VALID".
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "SAME"
    impl: ConvImpl = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
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
        return y + bias[None, None, None]


def _im2col(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """[B, H, W, C] and [size, size, C, F] -> [B, H', W', F], without padding."""
    size, features = kernel.shape[0], kernel.shape[-1]
    kernel = kernel.reshape(-1, features)
    patches = _patches(x, size, stride)
    if patches.size * patches.dtype.itemsize <= CACHE_BYTES:
        return patches @ kernel
    # Image by image; the backward pass takes the patches anew rather than keep them.
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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class CNN(nn.Module):
    """Convolutions with ReLU, the image halved at all but the first, then one dense
    layer. With `batch_norm`, running statistics come beside the parameters."""

    channels: Sequence[int]
    num_classes: int
    batch_norm: bool = False
    conv_impl: ConvImpl = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for layer, channels in enumerate(self.channels):
            stride = 1 if layer == 0 else 2
            x = Conv(channels, stride=stride, impl=self.conv_impl)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


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

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for channels in self.channels:
            x = nn.relu(Conv(channels, padding="VALID", impl=self.conv_impl)(x))
        batch, height, width, channels = x.shape
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        # In blocks, because the gradient of a windowed maximum is slow on a CPU.
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = x.reshape(batch, -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x)
