"""Spaces of observations and actions, with the attributes that gymnax's have."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jrl.types import Array, Bool, Key, PyTree

__all__ = ["Box", "Discrete", "Space"]


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers `0 .. n - 1`, as int32 scalars."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one element: a scalar."""
        return ()

    @property
    def dtype(self):
        """The dtype of one element."""
        return jnp.int32

    def sample(self, key: Key) -> Array:
        """Draws one element uniformly."""
        return jax.random.randint(key, (), 0, self.n)

    def contains(self, x: PyTree) -> Bool[Array, ""]:
        """Tells whether `x` is an element."""
        return jnp.all((jnp.asarray(x) >= 0) & (jnp.asarray(x) < self.n))


@dataclasses.dataclass(frozen=True)
class Box:
    """The arrays of one `shape` between `low` and `high` (numbers or nested tuples)."""

    low: float | tuple
    high: float | tuple
    shape: tuple[int, ...]
    dtype: type = jnp.float32

    def sample(self, key: Key) -> Array:
        """Draws one element uniformly; both bounds must be finite."""
        low, high = (jnp.asarray(b, self.dtype) for b in (self.low, self.high))
        return jax.random.uniform(key, self.shape, self.dtype, low, high)

    def contains(self, x: PyTree) -> Bool[Array, ""]:
        """Tells whether `x` is an element."""
        low, high = jnp.asarray(self.low), jnp.asarray(self.high)
        return jnp.all((x >= low) & (x <= high))

    @property
    def size(self) -> int:
        """How many numbers one element has."""
        return math.prod(self.shape)


Space = Discrete | Box
