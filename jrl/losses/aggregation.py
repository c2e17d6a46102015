"""Which tokens of a batch count how much: the mean over tokens, over sequences, or a constant.

A training step divides once: the sum of weighted losses by the sum of what they count. The
aggregations differ in two columns, which are made in a `prepare(batch)` and cut into microbatches
with it, so that no number of microbatches, and no padding, changes the result.
"""

from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jrl.losses.tokens import sequence_sums
from jrl.types import Array, Bool, Int

__all__ = ["TokenWeights", "token_weights"]

Aggregation = Literal["token-mean", "sequence-mean", "constant"]


class TokenWeights(NamedTuple):
    """An aggregation, as columns: `sum(token * losses) / sum(row)` over the whole batch."""

    token: Array
    """What multiplies the loss of each token, [*batch, T]; zero outside the mask."""
    row: Array
    """What each row adds to the divisor, [*batch]."""


def token_weights(
    mask: Bool[Array, "*batch T"],
    aggregation: Aggregation = "token-mean",
    max_length: int | None = None,
    segment_ids: Int[Array, "*batch T"] | None = None,
    count_empty: bool = False,
) -> TokenWeights:
    """Weighs tokens so that the sum of losses over the sum of weights is the wanted aggregate.

        token-mean     sum_it m_it l_it / sum_it m_it                   w_it = m_it
        sequence-mean  (1/B) sum_i (1/n_i) sum_t m_it l_it              w_it = m_it / n_i
        constant       sum_it m_it l_it / (B max_length)                w_it = m_it

    with n_i the kept tokens of sequence i and B the sequences. An objective returns
    `Loss(total=sum(token * losses), weight=sum(row))`. A row adds its own tokens to the divisor of
    `token-mean`, 1 to that of `sequence-mean`, and `max_length` to that of `constant`, where the
    weight of a loss is therefore not what it adds: no token counts less for the length of its
    sequence, and the divisor does not depend on what was sampled.

    Source: sequence-mean, GRPO, Shao et al. 2024, eq. 3, https://arxiv.org/abs/2402.03300;
    token-mean, DAPO, Yu et al. 2025, eq. 8, https://arxiv.org/abs/2503.14476; constant, Dr. GRPO,
    Liu et al. 2025, section 3.2, https://arxiv.org/abs/2503.20783.
    Args: `mask` [*batch, T] bool, true for the tokens to be trained on; `aggregation` static;
    `max_length` the longest completion that could have been sampled, needed by `constant`;
    `segment_ids` [*batch, T] integer for rows of several sequences; `count_empty` whether a
    sequence of which nothing is kept (a truncated one) is among the B.
    Returns: `TokenWeights(token, row)`, float32.
    Raises: AssertionError for other shapes or dtypes; ValueError for another aggregation, and
    for `constant` without `max_length`.
    In TRL these are "dapo" (and "bnpo"), "grpo" and "dr_grpo", empty sequences count; in verl
    "token-mean", "seq-mean-token-mean" and "seq-mean-token-sum-norm", they do not, which is
    followed here. verl's "seq-mean-token-sum" is `constant` with `max_length=1`.

    >>> mask = jnp.array([[True, True, True], [True, False, False]])
    >>> weights = token_weights(mask, "sequence-mean")
    >>> losses = jnp.array([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]])
    >>> float(jnp.sum(weights.token * losses) / jnp.sum(weights.row))
    4.0
    """
    chex.assert_type(mask, bool)
    if segment_ids is not None:
        chex.assert_equal_shape([mask, segment_ids])
        chex.assert_type(segment_ids, int)
    if aggregation not in get_args(Aggregation):
        names = ", ".join(get_args(Aggregation))
        raise ValueError(f"aggregation must be one of {names}, got {aggregation!r}")
    token = mask.astype(jnp.float32)
    if aggregation == "token-mean":
        return TokenWeights(token, jnp.sum(token, axis=-1))
    sequences = _count_sequences(jnp.ones_like(mask) if count_empty else mask, segment_ids)
    if aggregation == "sequence-mean":
        kept = sequence_sums(token, mask, segment_ids)
        return TokenWeights(token / jnp.maximum(kept, 1), sequences)
    if max_length is None or max_length < 1:
        raise ValueError(
            f"max_length must be the longest possible completion for 'constant', got {max_length}"
        )
    return TokenWeights(token, sequences * max_length)


def _count_sequences(mask, segment_ids):
    """Counts the sequences of each row of which the mask keeps a token, float32 `[*batch]`."""
    if segment_ids is None:
        return jnp.any(mask, axis=-1).astype(jnp.float32)

    def row(mask, ids):
        kept = jax.ops.segment_sum(mask.astype(jnp.int32), ids, len(ids) + 1)
        return jnp.sum(kept[1:] > 0, dtype=jnp.float32)

    return jnp.vectorize(row, signature="(t),(t)->()")(mask, segment_ids)
