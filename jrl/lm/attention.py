"""Attention of grouped heads, with rotary positions, windows, packed sequences and a cache.

Axes: B batch, L queries, S keys, N query heads, K key and value heads, H head size.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jrl.lm.config import Config
from jrl.types import Array, Bool, Float, Int, Leaf

__all__ = ["Cache", "attend", "causal_mask", "init_cache", "rotate", "write"]

UNSEEN = -1e30
"""Added to the score of a key that a query does not see; finite, for queries that see none."""


class Cache(struct.PyTreeNode):
    """Keys and values of all layers; a token's index along S is its position.

    So a query at position p sees the indices up to p: what stands behind them was left by an
    earlier request or by padding, and is overwritten before any query reaches it.
    """

    k_layersxBxKxSxH: Leaf
    v_layersxBxKxSxH: Leaf

    @property
    def length(self) -> int:
        """Positions that fit, S."""
        return self.k_layersxBxKxSxH.shape[3]


def init_cache(config: Config, batch: int, length: int, dtype=jnp.float32) -> Cache:
    """Makes an empty cache for `batch` sequences of at most `length` tokens."""
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write(
    cache: Cache,
    layer: Int[Array, ""],
    positions_BxL: Int[Array, "B L"],
    k_BxLxKxH: Float[Array, "B L K H"],
    v_BxLxKxH: Float[Array, "B L K H"],
) -> Cache:
    """Puts keys and values of one layer at their positions; those beyond the cache are lost."""
    rows = jnp.arange(positions_BxL.shape[0])[:, None]

    def put(x, new):
        return x.at[layer, rows, :, positions_BxL].set(new.astype(x.dtype), mode="drop")

    return Cache(put(cache.k_layersxBxKxSxH, k_BxLxKxH), put(cache.v_layersxBxKxSxH, v_BxLxKxH))


def rotate(
    x_BxLxNxH: Float[Array, "B L N H"],
    positions_BxL: Int[Array, "B L"],
    frequencies: Float[Array, " half"],
) -> Float[Array, "B L N H"]:
    """Turns the pairs (i, i + H/2) of every head by its position times their frequency.

        (a, b) -> (a cos pf - b sin pf,  b cos pf + a sin pf)

    Source: Su et al. 2021, eq. 34, https://arxiv.org/abs/2104.09864; pairs are half a head apart,
    as in the released weights of every family. Computed in float32.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, jnp.array([[1]]), jnp.array([jnp.pi / 2])).round(3).ravel()
    Array([-0.,  1.], dtype=float32)
    """
    angle = positions_BxL[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x_BxLxNxH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x_BxLxNxH.dtype)


def causal_mask(
    q_positions_BxL: Int[Array, "B L"],
    k_positions_BxS: Int[Array, "B S"],
    q_segments_BxL: Int[Array, "B L"] | None = None,
    k_segments_BxS: Int[Array, "B S"] | None = None,
    window: int | None = None,
    slides: Bool[Array, ""] | bool = True,
) -> Bool[Array, "B L S"]:
    """Says which keys a query sees: not later ones, of its own segment, in its window.

    `window` counts the query itself, and holds where `slides` is true (it may be traced: whether
    one of scanned layers slides is an array).

    >>> positions = jnp.arange(3)[None]
    >>> causal_mask(positions, positions, window=2)[0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]], dtype=int32)
    """
    distance = q_positions_BxL[:, :, None] - k_positions_BxS[:, None, :]
    mask = distance >= 0
    if q_segments_BxL is not None and k_segments_BxS is not None:
        mask &= q_segments_BxL[:, :, None] == k_segments_BxS[:, None, :]
    if window is not None:
        mask &= (distance < window) | jnp.logical_not(slides)
    return mask


def attend(
    q_BxLxNxH: Float[Array, "B L N H"],
    k_BxKxSxH: Float[Array, "B K S H"],
    v_BxKxSxH: Float[Array, "B K S H"],
    mask_BxLxS: Bool[Array, "B L S"],
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "B L N H"]:
    """Softmax attention with heads before keys, the order in which a cache is read in one piece.

        o = softmax(c tanh(q k^T s / c)) v

    Source: Vaswani et al. 2017, eq. 1, https://arxiv.org/abs/1706.03762; grouped heads, Ainslie
    et al. 2023, https://arxiv.org/abs/2305.13245; softcap c, Gemma Team 2024, section 2,
    https://arxiv.org/abs/2408.00118. Scores and softmax are float32. A query that sees no key
    (padding) gets the mean of all values, which nobody reads.

    >>> q, k = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 2, 2))
    >>> v = jnp.arange(4.0).reshape(1, 1, 2, 2)
    >>> attend(q, k, v, jnp.ones((1, 1, 2), bool), 0.5).ravel()  # both keys alike: the mean
    Array([1., 2.], dtype=float32)
    """
    b, length, n, h = q_BxLxNxH.shape
    heads, groups = k_BxKxSxH.shape[1], n // k_BxKxSxH.shape[1]
    # One axis of rows for the products, the mask added, the sum divided by after the product:
    # together half the time of a gradient on a CPU, most of which is passes over the scores.
    q = q_BxLxNxH.reshape(b, length, heads, groups, h).transpose(0, 2, 3, 1, 4)
    q = q.reshape(b, heads, groups * length, h)
    scores = jnp.einsum("bkrh,bksh->bkrs", q, k_BxKxSxH, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, heads, groups, length, -1) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores += jnp.where(mask_BxLxS, 0.0, UNSEEN)[:, None, None]
    p = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(p, axis=-1, keepdims=True)
    p = p.astype(v_BxKxSxH.dtype).reshape(b, heads, groups * length, -1)
    y = jnp.einsum("bkrs,bksh->bkrh", p, v_BxKxSxH, preferred_element_type=jnp.float32)
    y = (y.reshape(b, heads, groups, length, h) / total).astype(v_BxKxSxH.dtype)
    return y.transpose(0, 3, 1, 2, 4).reshape(b, length, n, h)
