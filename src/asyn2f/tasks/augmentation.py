"""Images varied at random, on the device."""

import jax
import jax.numpy as jnp

_PAD = 4


def crop_and_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image shifted by up to four pixels and mirrored with probability 1/2.

    Padded with four zeros on each side, a window of the old size is cut out at a
    uniformly drawn place: the usual augmentation for CIFAR (He et al., 2016, section
    4.2), before normalisation. [B, H, W, C] in and out, any dtype.

    >>> import jax, jax.numpy as jnp
    >>> images = jnp.ones((2, 32, 32, 3), jnp.uint8)
    >>> crop_and_flip(images, jax.random.key(0)).shape
    (2, 32, 32, 3)
    """
    count, height, width, _ = images.shape
    place_key, flip_key = jax.random.split(key)
    places = jax.random.randint(place_key, (count, 2), 0, 2 * _PAD + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count,))
    padded = jnp.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    # Indices rather than slices: a column is read from its mirror image at once.
    rows = places[:, :1] + jnp.arange(height)[None]
    columns = jnp.arange(width)[None]
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns) + places[:, 1:]
    one = jnp.arange(count)[:, None, None]
    return padded[one, rows[:, :, None], columns[:, None, :]]
