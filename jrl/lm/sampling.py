"""Draws tokens from logits: temperature, top-k, top-p and min-p, each row with its own.

Nothing is sorted. Each filter keeps the tokens whose logit reaches a threshold, and the thresholds
of top-k and top-p are found bit by bit, in 32 passes over the logits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrl.types import Array, Float, Int

__all__ = ["Draw", "draw", "thresholds"]

BLOCK = 128
"""Tokens whose probabilities are added up before they are compared with a random number."""


class Draw(NamedTuple):
    """Tokens, and how likely they were."""

    tokens_B: Int[Array, " B"]
    log_probs_B: Float[Array, " B"]
    """Under the distribution that they were drawn from: 0 where the temperature is 0."""
    tempered_log_probs_B: Float[Array, " B"]
    """Before filters, at the temperature they were drawn at: what trainers compute."""
    raw_log_probs_B: Float[Array, " B"]
    """Under the model itself, at temperature 1 and without filters."""


def draw(
    keys_B: Array,
    logits_BxV: Float[Array, "B V"],
    temperature_B: Float[Array, " B"],
    top_k_B: Int[Array, " B"],
    top_p_B: Float[Array, " B"],
    min_p_B: Float[Array, " B"],
) -> Draw:
    """Draws one token per row; the filters apply in the order of the arguments.

        z = logits / T,   q_v ∝ exp(z_v) 1{z_v >= thresholds(z)_v},   token ~ q
        T = 0: token = argmax logits, the first of several

    Source: the inverse of the cumulative distribution, Devroye 1986, "Non-Uniform Random Variate
    Generation", section III.2.1, http://luc.devroye.org/rnbookindex.html.
    Args: `keys_B` [B] keys, consumed; `logits_BxV` [B, V] float32; `temperature_B` [B] >= 0;
    `top_k_B`, `top_p_B`, `min_p_B` [B] as in `thresholds`. All may be traced.
    Returns: `Draw`; `jrl.lm.log_probs.token_log_probs(..., temperature)` is the trainer's
    `tempered_log_probs_B`, which are `log_probs_B` too as long as no filter is on.
    Deviations: one random number decides for a row (not one per token, as in the Gumbel trick), so
    a token whose probability is below 2^-23 is as good as impossible.

    >>> logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]))
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> temperature, top_k, ones = jnp.array([1.0, 0.0]), jnp.array([1, 0]), jnp.ones(2)
    >>> drawn = draw(keys, logits, temperature, top_k, ones, 0 * ones)
    >>> drawn.tokens_B, jnp.exp(drawn.log_probs_B), jnp.exp(drawn.raw_log_probs_B)
    (Array([1, 1], dtype=int32), Array([1., 1.], dtype=float32), Array([0.5, 0.5], dtype=float32))
    """
    greedy = temperature_B <= 0
    z_BxV = logits_BxV / jnp.where(greedy, 1.0, temperature_B)[:, None]
    # Greedy rows need no filter, and must not cause the passes that a filter takes.
    least_B = thresholds(
        z_BxV,
        jnp.where(greedy, 0, top_k_B),
        jnp.where(greedy, 1.0, top_p_B),
        jnp.where(greedy, 0.0, min_p_B),
    )
    top_B = jnp.max(z_BxV, axis=-1)
    all_BxV = jnp.exp(z_BxV - top_B[:, None])
    uniform_B = jax.vmap(jax.random.uniform)(keys_B)
    kept_BxV = jnp.where(z_BxV >= least_B[:, None], all_BxV, 0.0)
    drawn_B, total_B = _invert(kept_BxV, uniform_B)
    # What argmax returns; on a CPU that takes ten times as long.
    index_V = jnp.arange(z_BxV.shape[-1])[None]
    largest_B = jnp.min(jnp.where(z_BxV == top_B[:, None], index_V, z_BxV.shape[-1] - 1), axis=-1)
    tokens_B = jnp.where(greedy, largest_B, drawn_B).astype(jnp.int32)

    def of_tokens(x_BxV):
        return jnp.take_along_axis(x_BxV, tokens_B[:, None], axis=-1)[:, 0]

    below_B = of_tokens(z_BxV) - top_B
    log_probs_B = jnp.where(greedy, 0.0, below_B - jnp.log(total_B))
    tempered_B = jnp.where(greedy, 0.0, below_B - jnp.log(jnp.sum(all_BxV, axis=-1)))
    raw_B = of_tokens(logits_BxV) - jax.nn.logsumexp(logits_BxV, axis=-1)
    return Draw(tokens_B, log_probs_B, tempered_B, raw_B)


def thresholds(
    z_BxV: Float[Array, "B V"],
    top_k_B: Int[Array, " B"],
    top_p_B: Float[Array, " B"],
    min_p_B: Float[Array, " B"],
) -> Float[Array, " B"]:
    """Returns the smallest logit of each row that may be drawn; top-k, then top-p, then min-p.

        top-k  keeps the k largest
        top-p  of these, renormalised, the smallest set of the most probable with mass >= top_p
        min-p  of these, those with p_v >= min_p max p

    Source: Fan et al. 2018, section 5, https://arxiv.org/abs/1805.04833 (k); Holtzman et al. 2020,
    section 3.1, https://arxiv.org/abs/1904.09751 (p); Nguyen et al. 2025, section 3,
    https://arxiv.org/abs/2407.01082 (min-p).
    Args: `z_BxV` [B, V] float32, logits over the temperature; `top_k_B` [B] integer, 0 for all
    tokens; `top_p_B` [B] in (0, 1], 1 for all; `min_p_B` [B] in [0, 1], 0 for all.
    Returns: [B]; -inf where nothing is excluded. Min-p looks at a ratio to the largest, which
    renormalising does not change, so it alone costs nothing, nor do rows that exclude nothing.
    Deviations: tokens with exactly the logit of the threshold all stay (`transformers` does so for
    top-k, and lets the order of its sort decide for top-p).

    >>> z = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    >>> thresholds(z, jnp.array([3]), jnp.ones(1), jnp.zeros(1))
    Array([2.], dtype=float32)
    >>> thresholds(z, jnp.array([0]), jnp.array([0.7]), jnp.zeros(1))  # 0.64 + 0.24 >= 0.7
    Array([3.], dtype=float32)
    """
    limited = (top_k_B > 0) & (top_k_B < z_BxV.shape[-1])
    nothing = jnp.full(z_BxV.shape[:1], -jnp.inf, z_BxV.dtype)
    top_B = jnp.max(z_BxV, axis=-1)
    order_BxV = _ordered(z_BxV)

    def by_count():
        ones_BxV = jnp.ones_like(z_BxV)
        return jnp.where(limited, _largest(order_BxV, ones_BxV, top_k_B), -jnp.inf)

    least_B = jax.lax.cond(jnp.any(limited), by_count, lambda: nothing)

    def by_mass():
        p_BxV = jnp.where(z_BxV >= least_B[:, None], jnp.exp(z_BxV - top_B[:, None]), 0.0)
        found_B = _largest(order_BxV, p_BxV, top_p_B * jnp.sum(p_BxV, axis=-1))
        return jnp.where(top_p_B < 1, jnp.maximum(least_B, found_B), least_B)

    least_B = jax.lax.cond(jnp.any(top_p_B < 1), by_mass, lambda: least_B)
    # The most probable token stays even where top_B + log 1 was rounded up.
    return jnp.minimum(jnp.maximum(least_B, top_B + jnp.log(min_p_B)), top_B)


def _ordered(x: Float[Array, "B V"]) -> Array:
    """Maps floats to unsigned integers of the same order: the sign bit turns, of negatives all."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(order_BxV: Array, weight_BxV: Array, least_B: Array) -> Float[Array, " B"]:
    """Returns the largest x with sum_v weight_v 1{z_v >= x} >= least, one bit after the other."""

    def body(i, found_B):
        next_B = found_B | (jnp.uint32(1 << 31) >> i)
        weight_B = jnp.sum(jnp.where(order_BxV >= next_B[:, None], weight_BxV, 0.0), axis=-1)
        return jnp.where(weight_B >= least_B, next_B, found_B)

    found_B = jax.lax.fori_loop(0, 32, body, jnp.zeros(least_B.shape, jnp.uint32))
    bits = jnp.where(found_B >> 31 == 1, found_B ^ jnp.uint32(1 << 31), ~found_B)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _invert(p_BxV: Float[Array, "B V"], uniform_B: Float[Array, " B"]):
    """Returns the first token at which the sum of p exceeds uniform times its total, and that.

    Sums of whole blocks are searched before the tokens of the block that was found.
    """
    b, size = p_BxV.shape
    padded = jnp.pad(p_BxV, ((0, 0), (0, -size % BLOCK)))
    p_BxNxW = padded.reshape(b, -1, BLOCK)
    sums_BxN = jnp.cumsum(jnp.sum(p_BxNxW, axis=-1), axis=-1)
    total_B = sums_BxN[:, -1]
    target_B = uniform_B * total_B
    block_B = jnp.argmax(sums_BxN > target_B[:, None], axis=-1)
    before_BxN = jnp.pad(sums_BxN[:, :-1], ((0, 0), (1, 0)))
    target_B -= jnp.take_along_axis(before_BxN, block_B[:, None], axis=1)[:, 0]
    p_BxW = jnp.take_along_axis(p_BxNxW, block_B[:, None, None], axis=1)[:, 0]
    hit_BxW = jnp.cumsum(p_BxW, axis=-1) > target_B[:, None]
    # Rounding may leave no hit at the end of a block: then it is the last possible token.
    last_B = BLOCK - 1 - jnp.argmax(p_BxW[:, ::-1] > 0, axis=-1)
    place_B = jnp.where(jnp.any(hit_BxW, axis=-1), jnp.argmax(hit_BxW, axis=-1), last_B)
    return block_B * BLOCK + place_B, total_B
