"""Returns and advantages of sequences: sums of rewards to come, with or without a value function.

All arrays are time-major, `[T, ...]`, and row t is one step `s_t, a_t -> r, s_{t+1}`:

- `r_t[t]` its reward, `discount_t[t]` = gamma * (1 - terminated);
- `v_tm1[t]` = V(s_t); `v_t[t]` = V(s_{t+1}), of the *final* observation where the episode ended
  there, not of the first one of the next episode;
- `reset_t[t]`, bool: the next row belongs to another episode (terminated | truncated). A
  terminated step has discount 0 and takes nothing from later. A truncated one takes
  discount_t * v_t and nothing else. The last row always counts as truncated;
- `mask_t[t]`, bool or float: nonzero for a real step. A masked array gives what the array with the
  masked rows *deleted* gives, and zeros in those rows: padding at the end shortens the sequence, a
  hole in the middle is passed over, NaNs in masked rows harm neither values nor gradients. Mark
  the reset of an episode on its last real row; those of masked rows are ignored.

Where a hole follows row t, the functions that know `v_tm1` (`generalized_advantages`, `vtrace`)
bootstrap from V of the next real row (V' and A' are carried over the hole), for `v_t[t]` then is
the value of a masked position. The others use `v_t[t]` as it stands.

Gradients flow through all arguments: stop them where a target is used.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Bool, Float, Scalar

__all__ = [
    "VTrace",
    "discounted_returns",
    "generalized_advantages",
    "lambda_returns",
    "n_step_returns",
    "retrace",
    "reward_to_go",
    "vtrace",
]

Sequence = Float[Array, "T *batch"]
Flags = Bool[Array, "T *batch"]
Mask = Flags | Sequence


class VTrace(NamedTuple):
    """Results of `vtrace`: targets - v_tm1, targets of V(s_t), weights of grad log pi(a_t|s_t)."""

    errors: Array
    targets: Array
    pg_advantages: Array


def reward_to_go(
    r_t: Sequence, reset_t: Flags | None = None, mask_t: Mask | None = None
) -> Sequence:
    """Sums the rewards from each step to the end of its episode.

        Q_t = sum_{t' >= t} r_t'

    Source: Sutton, McAllester, Singh & Mansour, "Policy gradient methods for reinforcement
    learning with function approximation", 1999,
    https://proceedings.neurips.cc/paper/1999/hash/464d828b85b0bed98e80ade0a5c43b0f-Abstract.html;
    undiscounted, as in the lecture's REINFORCE.

    Args:
        r_t: rewards, float `[T, ...]`.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Sums, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> reward_to_go(jnp.array([1.0, 2.0, 4.0]))
    Array([7., 6., 4.], dtype=float32)
    """
    return discounted_returns(r_t, jnp.ones_like(r_t), None, reset_t, mask_t)


def discounted_returns(
    r_t: Sequence,
    discount_t: Sequence,
    v_t: Sequence | None = None,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> Sequence:
    """Sums the discounted rewards to come, and the value of where an episode was cut off.

        G_t = r_t + discount_t * G_{t+1},    r_t + discount_t * v_t where truncated

    Source: Sutton & Barto, "Reinforcement Learning: An Introduction", 2nd ed., 2018, eq. 3.9,
    http://incompleteideas.net/book/the-book-2nd.html. The truncation is an addition.

    Args:
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        v_t: values of the next (final) observations, float `[T, ...]`; None for zeros.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Returns, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
    >>> discounted_returns(r_t, discount_t)
    Array([3., 4., 4.], dtype=float32)
    >>> discounted_returns(r_t, discount_t, jnp.array([8.0, 8.0, 8.0]))
    Array([4., 6., 8.], dtype=float32)
    """
    v_t = jnp.zeros_like(r_t) if v_t is None else v_t
    return lambda_returns(r_t, discount_t, v_t, 1.0, reset_t, mask_t)


def n_step_returns(
    r_t: Sequence,
    discount_t: Sequence,
    v_t: Sequence,
    n: int,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> Sequence:
    """Sums n discounted rewards, then bootstraps.

        G^1_t = r_t + discount_t * v_t
        G^n_t = r_t + discount_t * G^{n-1}_{t+1},    G^1_t where truncated

    Source: Sutton & Barto, "Reinforcement Learning: An Introduction", 2nd ed., 2018, eq. 7.1,
    http://incompleteideas.net/book/the-book-2nd.html. Sums that would pass the end of the data or
    of an episode are cut there, with the value of that last state.

    Args:
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        v_t: values of the next (final) observations, float `[T, ...]`.
        n: rewards per return, at least 1; static, it costs O(min(n, T) * T).
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Returns, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.
        ValueError: n is less than 1.

    >>> r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
    >>> n_step_returns(r_t, discount_t, jnp.array([8.0, 8.0, 8.0]), 2)
    Array([4., 6., 8.], dtype=float32)
    """
    _check((r_t, discount_t, v_t), (), reset_t, mask_t)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    r_t, discount_t, v_t = _zero_masked(mask_t, r_t, discount_t, v_t)
    end_t, next_t = _ends(r_t, reset_t, mask_t), _next_rows(r_t, mask_t)

    def extend(_, return_t):
        later_t = jnp.take_along_axis(return_t, next_t, axis=0)
        return r_t + discount_t * jnp.where(end_t, v_t, later_t)

    # A return of T steps already reaches the end from everywhere.
    return jax.lax.fori_loop(1, min(n, r_t.shape[0]), extend, r_t + discount_t * v_t)


def lambda_returns(
    r_t: Sequence,
    discount_t: Sequence,
    v_t: Sequence,
    lambda_: Scalar | Sequence,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> Sequence:
    """Mixes the n-step returns of all n with geometric weights.

        G_t = r_t + discount_t * ((1 - lambda) * v_t + lambda * G_{t+1}),
              r_t + discount_t * v_t where truncated

    Source: Sutton & Barto, "Reinforcement Learning: An Introduction", 2nd ed., 2018, eq. 12.18,
    http://incompleteideas.net/book/the-book-2nd.html.

    Args:
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        v_t: values of the next (final) observations, float `[T, ...]`.
        lambda_: 0 for one-step returns, 1 for Monte-Carlo ones; a number, or float `[T, ...]`.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Returns, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> lambda_returns(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5]), jnp.array([4.0, 8.0]), 0.5)
    Array([3.5, 6. ], dtype=float32)
    """
    _check((r_t, discount_t, v_t), (lambda_,), reset_t, mask_t)
    r_t, discount_t, v_t, lambda_ = _zero_masked(mask_t, r_t, discount_t, v_t, lambda_)
    lambda_t = jnp.where(_ends(r_t, reset_t, mask_t), 0.0, lambda_ * jnp.ones_like(r_t))
    return _accumulate(r_t + discount_t * (1.0 - lambda_t) * v_t, discount_t * lambda_t, mask_t)


def generalized_advantages(
    r_t: Sequence,
    discount_t: Sequence,
    lambda_: Scalar | Sequence,
    v_tm1: Sequence,
    v_t: Sequence,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> Sequence:
    """Estimates advantages as exponentially weighted sums of temporal-difference errors (GAE).

        delta_t = r_t + discount_t * v_t - v_tm1
        A_t     = delta_t + discount_t * lambda * (1 - reset_t) * A_{t+1},    A_T = 0

    Source: Schulman, Moritz, Levine, Jordan & Abbeel, "High-dimensional continuous control using
    generalized advantage estimation", 2016, eq. 16, https://arxiv.org/abs/1506.02438; truncated
    after T steps as in Schulman et al., "Proximal policy optimization algorithms", 2017, eq. 11,
    https://arxiv.org/abs/1707.06347, where the last exponent is printed T-t+1 and must be T-t-1.
    Value targets are `A_t + v_tm1`, the lambda-returns.

    Args:
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        lambda_: 0 for one-step errors, 1 for Monte-Carlo ones; a number, or float `[T, ...]`.
        v_tm1, v_t: values of the observations and of the next (final) ones, float `[T, ...]`.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Advantages, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> r_t, discount_t = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
    >>> v_tm1, v_t = jnp.array([1.0, 4.0]), jnp.array([4.0, 8.0])
    >>> generalized_advantages(r_t, discount_t, 0.5, v_tm1, v_t)
    Array([2.5, 2. ], dtype=float32)
    """
    _check((r_t, discount_t, v_tm1, v_t), (lambda_,), reset_t, mask_t)
    v_t = _bridge_holes(v_tm1, v_t, reset_t, mask_t)
    r_t, discount_t, v_tm1, lambda_ = _zero_masked(mask_t, r_t, discount_t, v_tm1, lambda_)
    delta_t = r_t + discount_t * v_t - v_tm1
    flow_t = jnp.where(_ends(r_t, reset_t, mask_t), 0.0, discount_t * lambda_)
    return _accumulate(delta_t, flow_t, mask_t)


def vtrace(
    v_tm1: Sequence,
    v_t: Sequence,
    r_t: Sequence,
    discount_t: Sequence,
    rho_tm1: Sequence,
    lambda_: Scalar | Sequence = 1.0,
    clip_rho: Scalar = 1.0,
    clip_c: Scalar = 1.0,
    clip_pg_rho: Scalar = 1.0,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> VTrace:
    """Corrects value targets and advantages for data of another policy (V-trace).

        delta_t = min(clip_rho, rho) * (r_t + discount_t * v_t - v_tm1)
        e_t     = delta_t + discount_t * lambda * min(clip_c, rho) * (1 - reset_t) * e_{t+1}
        targets = v_tm1 + e_t
        A_t     = min(clip_pg_rho, rho) * (r_t + discount_t * (v_t + lambda * e_{t+1}) - v_tm1)

    Source: Espeholt et al., "IMPALA: scalable distributed deep-RL with importance weighted
    actor-learner architectures", 2018, eq. 1, remark 1 and section 4.2,
    https://arxiv.org/abs/1802.01561. The lambda in the advantage, 1 in the paper, is rlax's.

    Args:
        v_tm1, v_t: values of the observations and of the next (final) ones, float `[T, ...]`.
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        rho_tm1: pi(a_t | s_t) / mu(a_t | s_t), float `[T, ...]`.
        lambda_: mixing of one-step (0) and long (1) errors; a number, or float `[T, ...]`.
        clip_rho: largest ratio in delta; it sets which policy's value is learnt.
        clip_c: largest ratio in the trace; it sets the variance only.
        clip_pg_rho: largest ratio in the advantages.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        `VTrace(errors, targets, pg_advantages)`, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> one = jnp.ones(2)
    >>> vtrace(one, one, one, 0.5 * one, jnp.array([2.0, 0.5])).errors
    Array([0.625, 0.25 ], dtype=float32)
    """
    _check((r_t, discount_t, v_tm1, v_t, rho_tm1), (lambda_,), reset_t, mask_t)
    v_t = _bridge_holes(v_tm1, v_t, reset_t, mask_t)
    r_t, discount_t, v_tm1, rho_tm1, lambda_ = _zero_masked(
        mask_t, r_t, discount_t, v_tm1, rho_tm1, lambda_
    )
    end_t = _ends(r_t, reset_t, mask_t)
    flow_t = jnp.where(end_t, 0.0, discount_t * lambda_)
    delta_t = r_t + discount_t * v_t - v_tm1
    errors = _accumulate(
        jnp.minimum(rho_tm1, clip_rho) * delta_t, flow_t * jnp.minimum(rho_tm1, clip_c), mask_t
    )
    later_t = jnp.take_along_axis(errors, _next_rows(errors, mask_t), axis=0)
    advantages = jnp.minimum(rho_tm1, clip_pg_rho) * (delta_t + flow_t * later_t)
    return VTrace(errors, v_tm1 + errors, advantages)


def retrace(
    q_t: Sequence,
    v_t: Sequence,
    r_t: Sequence,
    discount_t: Sequence,
    rho_t: Sequence,
    lambda_: Scalar | Sequence = 1.0,
    reset_t: Flags | None = None,
    mask_t: Mask | None = None,
) -> Sequence:
    """Returns the targets of Q(s_t, a_t) from data of another policy (Retrace).

        G_t = r_t + discount_t * (v_t + c_t * (G_{t+1} - q_t)),    c_t = lambda * min(1, rho_t),
              r_t + discount_t * v_t where truncated

    Source: Munos, Stepleton, Harutyunyan & Bellemare, "Safe and efficient off-policy
    reinforcement learning", 2016, section 3, https://arxiv.org/abs/1606.02647, as a recursion.

    Args:
        q_t: Q(s_{t+1}, a_{t+1}) of the action taken next, float `[T, ...]`.
        v_t: E_pi Q(s_{t+1}, .), of the final observation at an end, float `[T, ...]`.
        r_t, discount_t: rewards and gamma * (1 - terminated), float `[T, ...]`.
        rho_t: pi(a_{t+1} | s_{t+1}) / mu(a_{t+1} | s_{t+1}), float `[T, ...]`. Like `q_t` it is
            not read in the last row of an episode, where no next action exists.
        lambda_: mixing of one-step (0) and long (1) returns; a number, or float `[T, ...]`.
        reset_t, mask_t: ends of episodes, bool, and real steps, bool or float, `[T, ...]`.
    Returns:
        Targets, float `[T, ...]`; zero in masked rows.
    Raises:
        AssertionError: wrong dtypes, or shapes that differ.

    >>> one = jnp.ones(2)
    >>> retrace(one, one, jnp.array([1.0, 2.0]), 0.5 * one, jnp.array([0.5, 9.0]))
    Array([1.875, 2.5  ], dtype=float32)
    """
    _check((r_t, discount_t, q_t, v_t, rho_t), (lambda_,), reset_t, mask_t)
    r_t, discount_t, q_t, v_t, rho_t, lambda_ = _zero_masked(
        mask_t, r_t, discount_t, q_t, v_t, rho_t, lambda_
    )
    end_t = _ends(r_t, reset_t, mask_t)
    # Whatever stands in the place of a next action that does not exist may be infinite.
    q_t, rho_t = jnp.where(end_t, 0.0, q_t), jnp.where(end_t, 0.0, rho_t)
    c_t = lambda_ * jnp.minimum(rho_t, 1.0)
    return _accumulate(r_t + discount_t * (v_t - c_t * q_t), discount_t * c_t, mask_t)


def _check(sequences, hyper, reset_t, mask_t):
    """Asserts floats of one shape `[T, ...]`, T > 0, and flags and numbers that go with them."""
    chex.assert_type([*sequences, *hyper], float)
    hyper = [x for x in hyper if jnp.ndim(x) > 0]
    flags = [x for x in (reset_t, mask_t) if x is not None]
    chex.assert_equal_shape([*sequences, *hyper, *flags])
    chex.assert_axis_dimension_gt(sequences[0], axis=0, val=0)
    if reset_t is not None:
        chex.assert_type(reset_t, bool)


def _zero_masked(mask_t, *arrays):
    """Replaces masked rows by zeros, so that no NaN in them can meet a derivative of zero."""
    if mask_t is None:
        return arrays
    return tuple(jnp.where(mask_t != 0, x, 0.0) if jnp.ndim(x) > 0 else x for x in arrays)


def _ends(like, reset_t, mask_t):
    """Marks the rows after which nothing of the episode is left in the data."""
    if mask_t is None:
        last_t = jax.lax.broadcasted_iota(jnp.int32, like.shape, 0) == like.shape[0] - 1
    else:
        real_t = (mask_t != 0).astype(jnp.int32)
        last_t = jax.lax.cumsum(real_t, axis=0, reverse=True) == real_t
    return last_t if reset_t is None else last_t | reset_t


def _next_rows(like, mask_t):
    """Returns the index of the next real row, int32 `[T, ...]`; T - 1 where there is none."""
    last = like.shape[0] - 1
    rows = jax.lax.broadcasted_iota(jnp.int32, like.shape, 0)
    if mask_t is not None:
        rows = jax.lax.cummin(jnp.where(mask_t != 0, rows, last), axis=0, reverse=True)
    return jnp.concatenate([rows[1:], jnp.full_like(rows[:1], last)])


def _bridge_holes(v_tm1, v_t, reset_t, mask_t):
    """Puts V of the next real row into `v_t` where a hole follows, and zeros into masked rows."""
    if mask_t is None:
        return v_t
    v_tm1, v_t = _zero_masked(mask_t, v_tm1, v_t)
    beyond_t = jnp.take_along_axis(v_tm1, _next_rows(v_t, mask_t), axis=0)
    hole_t = jnp.concatenate([mask_t[1:] == 0, jnp.zeros_like(mask_t[:1], dtype=bool)])
    return jnp.where(hole_t & ~_ends(v_t, reset_t, mask_t), beyond_t, v_t)


def _accumulate(b_t, c_t, mask_t):
    """Solves x_t = b_t + c_t * x_{t+1}, x_T = 0, and passes over masked rows."""
    if mask_t is not None:
        b_t, c_t = jnp.where(mask_t != 0, b_t, 0.0), jnp.where(mask_t != 0, c_t, 1.0)
    x_t = jax.lax.scan(_affine, jnp.zeros_like(b_t[0]), (b_t, c_t), reverse=True)[1]
    return x_t if mask_t is None else jnp.where(mask_t != 0, x_t, 0.0)


def _affine(x, row):
    """One step of `_accumulate`; up here so that unjitted calls share one compiled scan."""
    x = row[0] + row[1] * x
    return x, x
