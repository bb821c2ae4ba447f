"""A convolution whose arithmetic suits the device."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

# A core's second-level cache has so much, about: what is larger goes through memory.
CACHE_BYTES = 2**20

ConvImpl = Literal["auto", "lax", "im2col"]


class Conv(nn.Module):
    """A 2-d convolution whose arithmetic can be chosen, not its parameters.

    `lax` is XLA's own. `im2col` gathers the patches and multiplies once: on a CPU, the
    gradient of XLA's convolution inside `scan`, `map` or `cond` misses its fast path
    and runs many times slower, a matrix product does not. `auto` is im2col on a CPU and
    lax elsewhere. [B, H, W, C] in, [B, H', W', features] out: H' is H / stride with
    "SAME" padding, (H - kernel_size + 1) / stride with "VALID". Parameters are float32
    whatever the `dtype` it computes in.
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
