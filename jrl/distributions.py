"""Action distributions as pytrees: a categorical and a diagonal Gaussian.

Both have `sample(key)`, `mode()`, `log_prob(action)`, `entropy()` and `kl(other)`, on any
leading shape. They hold only arrays, so a trajectory can store the one that acted.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from jrl.types import Array, Float, Int, Key, Leaf

__all__ = ["Categorical", "Distribution", "Normal"]


class Categorical(struct.PyTreeNode):
    """Distribution over `0 .. A - 1` given by unnormalised `logits[..., A]`.

    >>> d = Categorical(jnp.log(jnp.array([0.25, 0.75])))
    >>> round(float(d.log_prob(jnp.int32(1))), 4), int(d.mode())
    (-0.2877, 1)
    """

    logits: Leaf

    def sample(self, key: Key) -> Int[Array, "*batch"]:
        """Draws one action for every leading index."""
        return jax.random.categorical(key, self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        """Returns the most probable action."""
        return jnp.argmax(self.logits, axis=-1)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """log pi(a) = logit_a - logsumexp(logits)."""
        log_p = jax.nn.log_softmax(self.logits)
        # A sum over a mask, not a gather: its gradient is no scatter, which is slow on CPU.
        chosen = jnp.expand_dims(action, -1) == jnp.arange(log_p.shape[-1]).reshape(
            (1,) * action.ndim + (-1,)
        )
        return jnp.sum(jnp.where(chosen, log_p, 0.0), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """H = -sum_a p_a log p_a, with 0 log 0 = 0."""
        log_p = jax.nn.log_softmax(self.logits)
        p = jnp.exp(log_p)
        # The `where` stands inside: outside, a forbidden action makes the gradient NaN.
        return -jnp.sum(p * jnp.where(p > 0, log_p, 0.0), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        """KL(self, other) = sum_a p_a (log p_a - log q_a)."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        p = jnp.exp(log_p)
        both = jnp.where(p > 0, log_p, 0.0), jnp.where(p > 0, log_q, 0.0)
        return jnp.sum(p * (both[0] - both[1]), axis=-1)


class Normal(struct.PyTreeNode):
    """Gaussian with independent components, `mean[..., D]` and `log_std[..., D]`.

    >>> d = Normal(jnp.zeros(1), jnp.zeros(1))
    >>> round(float(d.log_prob(jnp.zeros(1))), 4), round(float(d.entropy()), 4)
    (-0.9189, 1.4189)
    """

    mean: Leaf
    log_std: Leaf

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        """Draws one action for every leading index."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> Float[Array, "*batch D"]:
        """Returns the mean."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """log pi(a) = -1/2 sum_i ((a_i - mu_i) / sigma_i)^2 + 2 log sigma_i + log 2 pi."""
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * jnp.sum(z**2 + 2 * self.log_std + math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """H = sum_i log sigma_i + 1/2 log(2 pi e)."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: "Normal") -> Float[Array, "*batch"]:
        """KL(self, other), summed over components."""
        log_ratio = 2 * (self.log_std - other.log_std)
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return 0.5 * jnp.sum(jnp.exp(log_ratio) + distance - 1 - log_ratio, axis=-1)


Distribution = Categorical | Normal
