"""AdamW as language models are trained with: clipped, warmed up, annealed."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jrl import train
from jrl.types import Leaf

__all__ = ["AdamW", "adamw"]


class AdamW(struct.PyTreeNode):
    """The optimizer's numbers: the beginning of every `Hyper` of a language model."""

    learning_rate: Leaf = 1e-5
    """Largest step size."""
    warmup: Leaf = 0.0
    """Share of all updates over which the step size grows linearly."""
    anneal: Leaf = 0.0
    """Share of the learning rate that is gone at the end of training, linearly (0 to 1)."""
    b1: Leaf = 0.9
    """Decay of the mean of gradients."""
    b2: Leaf = 0.999
    """Decay of the mean of their squares."""
    adam_eps: Leaf = 1e-8
    """Epsilon of Adam."""
    weight_decay: Leaf = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Leaf = 1.0
    """Largest global norm of the gradient; inf for any."""


def adamw(updates: int) -> train.Optimizer:
    """Makes AdamW whose schedule is over after `updates` updates.

    Source: Loshchilov & Hutter 2019, algorithm 2, https://arxiv.org/abs/1711.05101. Norms, biases
    and single numbers do not decay.

    >>> tx = adamw(10)(AdamW(learning_rate=0.1, warmup=0.5))
    >>> params = {"w": jnp.ones((1, 1))}
    >>> step, _ = tx.update({"w": jnp.ones((1, 1))}, tx.init(params), params)
    >>> step["w"].ravel().round(4)  # the first of five updates of warming up
    Array([-0.02], dtype=float32)
    """

    def make_tx(hp):
        annealed = train.annealed(hp.learning_rate, hp.anneal, updates)

        def schedule(count):
            warm = (count + 1) / jnp.maximum(hp.warmup * updates, 1.0)
            return annealed(count) * jnp.minimum(warm, 1.0)

        return optax.chain(
            optax.clip_by_global_norm(hp.max_grad_norm),
            optax.scale_by_adam(hp.b1, hp.b2, hp.adam_eps),
            optax.add_decayed_weights(hp.weight_decay, mask=_decays),
            optax.scale_by_learning_rate(schedule),
        )

    return make_tx


def _decays(params):
    def one(path, x):
        return jax.tree_util.keystr(path[-1:], simple=True) not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(one, params)
