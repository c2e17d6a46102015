"""Correcting for a sampler that is not the trainer: truncated and masked importance weights.

The numbers of an inference engine and of a training step differ (precision, kernels, stale
weights), so that tokens are drawn from a policy close to the one that is believed to have drawn
them. A weight multiplies the loss of a token; the mask and what the losses are divided by stay.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jrl.losses.tokens import sequence_sums
from jrl.types import Array, Bool, Float, Int, Scalar

__all__ = ["importance_weights"]

Level = Literal["token", "sequence", "sequence-mean"]
Outside = Literal["truncate", "mask"]


def importance_weights(
    log_probs: Float[Array, "*batch T"],
    sampler_log_probs: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    level: Level = "token",
    outside: Outside = "truncate",
    high: Scalar = 2.0,
    low: Scalar = 0.0,
    segment_ids: Int[Array, "*batch T"] | None = None,
) -> Float[Array, "*batch T"]:
    """Weighs tokens by how much likelier the trainer's policy makes them than the sampler's did.

        d_t = log pi_old(y_t) - log pi_sampler(y_t)
        w_t = exp(d_t), exp(sum_s d_s) or exp(mean_s d_s)    for token, sequence, sequence-mean
        truncate: min(max(w_t, low), high)        mask: w_t 1{low <= w_t <= high}

    Per token the weight is of low variance and biased; of a sequence it is unbiased until
    truncated, and grows or vanishes with the length; of the mean it is no importance weight, but
    a measure of the mismatch that does not depend on the length: use it with "mask".

    Source: Yao et al. 2025, https://fengyao.notion.site/off-policy-rl; truncation, Ionides 2008,
    https://doi.org/10.1198/106186008X320456; masked tokens, IcePop, Ling Team 2025,
    https://arxiv.org/abs/2510.18855. The bounds of verl and Tunix are (0, 2) and "truncate" on
    tokens, TRL's (0, 3) and "mask" on sequences.
    Args: log-probabilities of the sampled tokens by the model that trains, before its update, and
    as the sampler gave them, [*batch, T] floating; `mask` [*batch, T] bool; `level` and `outside`
    static; `high` > 0 (inf for none); `low` >= 0; `segment_ids` [*batch, T] for packed rows.
    Returns: [*batch, T], constant (no gradient), zero outside the mask.
    Raises: AssertionError for other shapes or dtypes, ValueError for another level or outside.
    Deviation: log-ratios are not clamped to +-20 first (verl). A missing (NaN) number of the
    sampler inside the mask gives NaN, or 0 where "mask" drops it (TRL takes a weight of 1).
    Dividing by `masked_mean(weights, mask)` of the batch gives verl's normalised weights.

    >>> ours, sampler = jnp.log(jnp.array([0.5, 0.9, 0.2])), jnp.log(jnp.array([0.5, 0.3, 0.4]))
    >>> importance_weights(ours, sampler, jnp.ones(3, bool)).round(4)
    Array([1. , 2. , 0.5], dtype=float32)
    >>> importance_weights(ours, sampler, jnp.ones(3, bool), outside="mask").round(4)
    Array([1. , 0. , 0.5], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, sampler_log_probs, mask])
    chex.assert_type([log_probs, sampler_log_probs, mask], [float, float, bool])
    chex.assert_rank([low, high], 0)
    for name, value, kinds in (("level", level, Level), ("outside", outside, Outside)):
        if value not in get_args(kinds):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
    log_ratio = jax.lax.stop_gradient(jnp.where(mask, log_probs - sampler_log_probs, 0))
    if level != "token":
        count = sequence_sums(jnp.ones_like(log_ratio), mask, segment_ids)
        log_ratio = sequence_sums(log_ratio, mask, segment_ids)
        if level == "sequence-mean":
            log_ratio = log_ratio / jnp.maximum(count, 1)
    # Compared as logarithms: the product of many ratios overflows long before it is cut.
    least, most = (jnp.log(x).astype(log_ratio.dtype) for x in (low, high))
    inside = (log_ratio >= least) & (log_ratio <= most)
    weight = jnp.exp(jnp.clip(log_ratio, least, most))
    return jnp.where(mask if outside == "truncate" else mask & inside, weight, 0)
