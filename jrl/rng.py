"""Random keys for large batches."""

import math

import jax
import jax.numpy as jnp

from jrl.types import Key

__all__ = ["batch_keys"]


def batch_keys(key: Key, shape: tuple[int, ...]):
    """Makes an array of keys for the price of one hash.

    A threefry generator is a keyed pseudo-random function of a counter, so two keys that differ
    in any bit give independent streams (Salmon et al. 2011, "Parallel random numbers: as easy
    as 1, 2, 3", https://doi.org/10.1145/2063384.2063405, section 2). `jax.random.split` hashes
    once per key all the same; here one hash gives a random base, and the keys count up from it.
    Other generators fall back to `split`. The key is consumed.

    >>> keys = batch_keys(jax.random.key(0), (2, 3))
    >>> keys.shape, len({tuple(k) for k in jax.random.key_data(keys).reshape(6, 2).tolist()})
    ((2, 3), 6)
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.split(key, shape)
    base = jax.random.bits(key, (2,), jnp.uint32)
    count = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    words = jnp.stack([jnp.full_like(count, base[0]), base[1] + count], axis=-1)
    return jax.random.wrap_key_data(words.reshape(*shape, 2), impl="threefry2x32")
