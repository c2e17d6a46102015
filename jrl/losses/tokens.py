"""Columns of a token batch: group-relative advantages, masked statistics, rewards on tokens.

A group is the set of responses drawn for one prompt. It is an axis, `[*batch, group_size]`, with a
mask for members that are missing, or an integer id per response when groups are ragged. These
functions couple examples, so they belong into a `prepare(batch)` before minibatches are cut.

A sequence is a row of `[*batch, T]`, or, where several are packed into a row, the tokens of one
`segment_ids` [*batch, T]: numbered from 1 in each row, 0 for padding.
"""

from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Bool, Float, Int, Scalar

__all__ = [
    "group_advantages",
    "group_advantages_by_id",
    "informative_groups",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "reward_at_last_token",
    "sequence_sums",
]

Kind = Literal["grpo", "dr_grpo", "rloo", "batch_std"]


def group_advantages(
    rewards: Float[Array, "*batch N"],
    mask: Bool[Array, "*batch N"] | None = None,
    kind: Kind = "grpo",
    eps: Scalar = 1e-6,
) -> Float[Array, "*batch N"]:
    """Compares each response with the others of its prompt, in place of a learned value.

        grpo       A_i = (r_i - mean) / (std + eps),    std^2 = sum_j (r_j - mean)^2 / (n - 1)
        dr_grpo    A_i = r_i - mean
        rloo       A_i = r_i - mean_{j != i} r_j = n / (n - 1) (r_i - mean)
        batch_std  A_i = (r_i - mean) / (std + eps), the mean of the group, the std of all rewards

    Source: Shao et al. 2024, section 4.1.2, https://arxiv.org/abs/2402.03300; without the std,
    Liu et al. 2025, https://arxiv.org/abs/2503.20783; leave-one-out, Kool et al. 2019 and
    Ahmadian et al. 2024, section 2, https://arxiv.org/abs/2402.14740; the std of the batch, TRL's
    `scale_rewards="batch"`.
    Args: `rewards` [*batch, N] floating, a group along the last axis; `mask` [*batch, N] bool,
    false for missing members (their rewards may be NaN); `kind` static; `eps` > 0.
    Returns: [*batch, N], zero for missing members.
    Raises: AssertionError for unequal shapes or wrong dtypes, ValueError for another kind.
    Conventions: the std has n - 1 below (TRL, verl, Tunix; EasyDeL has n); eps is verl's (TRL has
    1e-4); a group of one has no others to be compared with and takes mean 0 and std 1, as in
    verl, so that its advantage is its reward; equal rewards give exactly zero, which rounding of
    the mean would not. AReaL's normalisation over the batch is `masked_whiten` of the advantages
    on tokens (with the std + 1e-5 below, in place of a root of a sum).

    >>> group_advantages(jnp.array([[1.0, 2.0, 6.0]]), kind="dr_grpo")
    Array([[-2., -1.,  3.]], dtype=float32)
    >>> group_advantages(jnp.array([[1.0, 2.0, 6.0]]), kind="rloo")
    Array([[-3. , -1.5,  4.5]], dtype=float32)
    """

    def total(x):
        return jnp.broadcast_to(jnp.sum(x, axis=-1, keepdims=True), x.shape)

    def lowest(x):
        return jnp.broadcast_to(jnp.min(x, axis=-1, keepdims=True), x.shape)

    return _advantages(rewards, mask, kind, eps, total, lowest)


def group_advantages_by_id(
    rewards: Float[Array, " B"],
    group_ids: Int[Array, " B"],
    num_groups: int,
    mask: Bool[Array, " B"] | None = None,
    kind: Kind = "grpo",
    eps: Scalar = 1e-6,
) -> Float[Array, " B"]:
    """`group_advantages` of groups of any sizes in any order, told apart by an id.

    Source and equations: `group_advantages`; the sums are segment sums.
    Args: `rewards` [B] floating; `group_ids` [B] integer in 0 .. num_groups - 1, equal within a
    group; `num_groups` static; `mask` [B] bool, false for missing responses; `kind` static.
    Returns: [B], zero where masked, and where an id is out of range.
    Raises: AssertionError for other shapes or dtypes, ValueError for another kind.

    >>> rewards, ids = jnp.array([1.0, 5.0, 2.0, 6.0]), jnp.array([0, 1, 0, 0])
    >>> group_advantages_by_id(rewards, ids, 2, kind="dr_grpo")  # group 1 has one member
    Array([-2.,  5., -1.,  3.], dtype=float32)
    """
    chex.assert_rank([rewards, group_ids], 1)
    chex.assert_equal_shape([rewards, group_ids])
    chex.assert_type(group_ids, int)
    known = (group_ids >= 0) & (group_ids < num_groups)
    mask = known if mask is None else mask & known
    group_ids = jnp.where(known, group_ids, 0)

    def total(x):
        return jax.ops.segment_sum(x, group_ids, num_groups)[group_ids]

    def lowest(x):
        return jax.ops.segment_min(x, group_ids, num_groups)[group_ids]

    return _advantages(rewards, mask, kind, eps, total, lowest)


def informative_groups(
    rewards: Float[Array, "*batch N"], mask: Bool[Array, "*batch N"] | None = None
) -> Bool[Array, "*batch"]:
    """Tells which groups have responses of different reward: the others have no gradient.

    Source: the dynamic sampling of Yu et al. 2025, eq. 11, https://arxiv.org/abs/2503.14476.
    Args: `rewards` [*batch, N] floating; `mask` [*batch, N] bool, false for missing members.
    Returns: [*batch] bool; false for groups of one and empty ones.
    Raises: AssertionError for unequal shapes or wrong dtypes.

    >>> informative_groups(jnp.array([[0.0, 1.0], [1.0, 1.0]]))
    Array([ True, False], dtype=bool)
    """
    mask = jnp.ones_like(rewards, bool) if mask is None else mask
    chex.assert_equal_shape([rewards, mask])
    chex.assert_type([rewards, mask], [float, bool])
    highest = jnp.max(jnp.where(mask, rewards, -jnp.inf), axis=-1)
    return highest > jnp.min(jnp.where(mask, rewards, jnp.inf), axis=-1)


def masked_sum(x: Float[Array, "..."], mask: Bool[Array, "..."], axis=None) -> Float[Array, "..."]:
    """Sums the elements that the mask keeps: `sum(m x)`, the log-probability of a response.

    Source: arithmetic. Where a sum is to be compared with that of a reference, sum the differences
    of the tokens: a difference of two long sums in float32 may have the wrong sign.
    Args: `x` floating and `mask` bool of one shape; `axis` as in `jnp.sum`, None for all.
    Returns: the sums. NaN and inf outside the mask do not matter.
    Raises: AssertionError for unequal shapes or wrong dtypes.

    >>> masked_sum(jnp.array([[1.0, 3.0, jnp.nan]]), jnp.array([[True, True, False]]), axis=-1)
    Array([4.], dtype=float32)
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type([x, mask], [float, bool])
    return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def masked_mean(x: Float[Array, "..."], mask: Bool[Array, "..."], axis=None) -> Float[Array, "..."]:
    """Mean of the elements that the mask keeps: `sum(m x) / sum(m)`.

    Source: arithmetic; a mean for metrics and advantages. A loss sums, and is divided once.
    Args: `x` floating and `mask` bool of one shape; `axis` as in `jnp.mean`, None for all.
    Returns: the means, 0 where nothing is kept. NaN and inf outside the mask do not matter.
    Raises: AssertionError for unequal shapes or wrong dtypes.

    >>> masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False]))
    Array(2., dtype=float32)
    """
    total = masked_sum(x, mask, axis)
    return total / jnp.maximum(jnp.sum(mask, axis=axis, dtype=x.dtype), 1)


def sequence_sums(
    x: Float[Array, "*batch T"],
    mask: Bool[Array, "*batch T"],
    segment_ids: Int[Array, "*batch T"] | None = None,
) -> Float[Array, "*batch T"]:
    """Sums what the mask keeps of each sequence, and writes the sum on all tokens of it.

    Source: arithmetic; packed rows give what one row per sequence gives.
    Args: `x` floating and `mask` bool, [*batch, T]; `segment_ids` [*batch, T] integer in 0 .. T.
    Returns: [*batch, T], zero on padding (segment 0). NaN and inf outside the mask do not matter.
    Raises: AssertionError for unequal shapes or wrong dtypes.

    >>> x, mask = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([True, True, False, True])
    >>> sequence_sums(x, mask)
    Array([11., 11., 11., 11.], dtype=float32)
    >>> sequence_sums(x, mask, jnp.array([1, 1, 1, 2]))
    Array([3., 3., 3., 8.], dtype=float32)
    """
    chex.assert_equal_shape([x, mask])
    chex.assert_type([x, mask], [float, bool])
    x = jnp.where(mask, x, 0)
    if segment_ids is None:
        return jnp.broadcast_to(jnp.sum(x, axis=-1, keepdims=True), x.shape)
    chex.assert_equal_shape([x, segment_ids])
    chex.assert_type(segment_ids, int)

    def row(x, ids):
        return jax.ops.segment_sum(x, ids, len(ids) + 1).at[0].set(0)[ids]

    return jnp.vectorize(row, signature="(t),(t)->(t)")(x, segment_ids)


def masked_whiten(
    x: Float[Array, "..."], mask: Bool[Array, "..."], shift_mean: bool = True, eps: Scalar = 1e-8
) -> Float[Array, "..."]:
    """Shifts and scales what the mask keeps to mean 0 and variance 1, over all axes.

        y = (x - mean) / sqrt(var + eps),    var = sum(m (x - mean)^2) / (sum(m) - 1)

    Source: Huang et al. 2024, detail on whitening, https://arxiv.org/abs/2403.17031, as in verl.
    Args: `x` floating and `mask` bool of one shape; `shift_mean` static, False keeps the mean
    (for rewards); `eps` > 0. Returns: the shape of `x`.
    Raises: AssertionError for unequal shapes or wrong dtypes.
    Deviation: zero outside the mask, where verl leaves numbers that a sum must mask again; fewer
    than two elements have variance 0 (verl raises).

    >>> masked_whiten(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    Array([-0.70710677,  0.70710677,  0.        ], dtype=float32)
    """
    mean = masked_mean(x, mask)
    chex.assert_rank(eps, 0)
    centered = jnp.where(mask, x - mean, 0)
    count = jnp.sum(mask, dtype=x.dtype)
    variance = jnp.sum(jnp.square(centered)) / jnp.maximum(count - 1, 1)
    white = centered * jax.lax.rsqrt(variance + eps)
    return white if shift_mean else jnp.where(mask, white + mean, 0)


def reward_at_last_token(
    rewards: Float[Array, "*batch"], mask: Bool[Array, "*batch T"]
) -> Float[Array, "*batch T"]:
    """Places the reward of a response on its last token: `r_t = r 1{t = max {s: m_s}}`.

    Source: Ouyang et al. 2022, section 3.5, https://arxiv.org/abs/2203.02155 (a bandit whose
    reward comes at the end); the position is verl's.
    Args: `rewards` [*batch] floating; `mask` [*batch, T] bool, true for the tokens that the
    policy chose, the end-of-sequence token included: there the reward lands.
    Returns: [*batch, T] in the dtype of `rewards` (fractions survive); zeros for an empty row.
    Raises: AssertionError for other shapes or dtypes.

    >>> reward_at_last_token(jnp.array([0.5]), jnp.array([[True, False, True, False]]))
    Array([[0. , 0. , 0.5, 0. ]], dtype=float32)
    """
    chex.assert_shape(mask, (*rewards.shape, None))
    chex.assert_type([rewards, mask], [float, bool])
    remaining = jnp.flip(jnp.cumsum(jnp.flip(mask, -1), axis=-1, dtype=jnp.int32), -1)
    return jnp.where(mask & (remaining == 1), rewards[..., None], 0)


def _advantages(rewards, mask, kind, eps, total, lowest):
    mask = jnp.ones_like(rewards, bool) if mask is None else mask
    chex.assert_equal_shape([rewards, mask])
    chex.assert_type([rewards, mask], [float, bool])
    chex.assert_rank(eps, 0)
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    count = total(mask.astype(rewards.dtype))
    alone = count <= 1
    # Rewards above the group's lowest: their mean is exact when all are equal.
    rewards = jnp.where(mask, rewards, 0)
    base = jax.lax.stop_gradient(lowest(jnp.where(mask, rewards, jnp.inf)))
    above = jnp.where(mask, rewards - base, 0)
    centered = jnp.where(mask, above - total(above) / jnp.maximum(count, 1), 0)
    others = jnp.where(alone, 1, count - 1)
    if kind == "rloo":
        centered = count / others * centered
    if kind == "grpo":
        centered = centered / (_std(total(jnp.square(centered)) / others) + eps)
        rewards = rewards / (1 + eps)
    if kind == "batch_std":
        away = jnp.where(mask, rewards - masked_mean(rewards, mask), 0)
        scale = _std(jnp.sum(jnp.square(away)) / jnp.maximum(jnp.sum(mask) - 1, 1)) + eps
        centered, rewards = centered / scale, rewards / scale
    return jnp.where(alone, rewards, centered)


def _std(variance):
    # The root has no gradient at zero, where it only ever divides zeros.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
