"""Small functions on pytrees that jax and optax do not have."""

import jax
import jax.numpy as jnp

from jrl.types import PyTree

__all__ = ["cast", "flatten_axes", "select", "size", "swap_axes", "take"]


def select(condition, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Chooses leaf by leaf; `condition` covers the leading axes of every leaf.

    >>> select(jnp.array([True, False]), jnp.ones((2, 3)), jnp.zeros((2, 3)))[:, 0].tolist()
    [1.0, 0.0]
    """
    condition = jnp.asarray(condition)

    def one(x, y):
        x, y = jnp.asarray(x), jnp.asarray(y)
        rank = max(x.ndim, y.ndim)
        return jnp.where(condition.reshape(condition.shape + (1,) * (rank - condition.ndim)), x, y)

    return jax.tree.map(one, on_true, on_false)


def cast(tree: PyTree, dtype) -> PyTree:
    """Casts the floating-point leaves to `dtype`; `None` leaves the tree as it is."""
    if dtype is None:
        return tree

    def one(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(one, tree)


def flatten_axes(tree: PyTree, axes: int = 2) -> PyTree:
    """Merges the first `axes` axes of every leaf: [T, B, ...] becomes [T * B, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), tree)


def swap_axes(tree: PyTree) -> PyTree:
    """Swaps the first two axes of every leaf: time-major becomes batch-major and back."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)


def take(tree: PyTree, index) -> PyTree:
    """Indexes the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)


def size(tree: PyTree) -> int:
    """Counts the numbers in all leaves."""
    return sum(x.size for x in jax.tree.leaves(tree))
