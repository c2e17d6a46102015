"""Policy gradients: REINFORCE, baselines, actor-critic, clipped and penalised surrogates, DPG.

Every loss is to be *minimised*, so it is the negated objective of its paper, and comes unreduced:
one number per element, any leading shape. Advantages, weights and behaviour log-probabilities are
constants of the losses (gradients stop there); the three baselines are plain arithmetic.

Importance ratios come as their logarithms, `log_ratio = log_prob - old_log_prob`. A ratio
saturates, with gradient zero, at the square root of the largest number of its dtype (2e19 in
float32), so that no loss or gradient is infinite or NaN however far the policies are apart.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Bool, Float, Scalar

__all__ = [
    "ActorCritic",
    "actor_critic",
    "batch_mean_baseline",
    "clipped_surrogate",
    "decoupled_clipped_surrogate",
    "deterministic_policy_gradient",
    "entropy_bonus",
    "kl_penalized_surrogate",
    "leave_one_out_baseline",
    "reinforce",
    "state_value_baseline",
    "surrogate",
]

Elements = Float[Array, "*batch"]
Mask = Bool[Array, "*batch"] | Float[Array, "*batch"]


class ActorCritic(NamedTuple):
    """Unweighted terms of an actor-critic loss, each `[...]` and to be minimised."""

    policy: Array
    value: Array
    entropy: Array


def reinforce(log_prob: Elements, weight: Elements) -> Elements:
    """Makes actions likelier in proportion to a weight (L^PG): a return or an advantage.

        loss = -log pi(a|s) * weight

    Source: Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", 1992, https://doi.org/10.1007/BF00992696; L^PG of Schulman
    et al., "Proximal policy optimization algorithms", 2017, eq. 2,
    https://arxiv.org/abs/1707.06347.

    Args:
        log_prob: log pi(a|s) of the actions taken, float `[...]`.
        weight: reward-to-go, return minus a baseline, or advantage, float `[...]`; a constant.
    Returns:
        Losses, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> reinforce(jnp.array([-1.0, -2.0]), jnp.array([3.0, -0.5]))
    Array([ 3., -1.], dtype=float32)
    """
    _check(log_prob, weight)
    return -log_prob * jax.lax.stop_gradient(weight)


def state_value_baseline(return_t: Elements, v_tm1: Elements) -> Elements:
    """Subtracts the value of the state from the return: the advantage.

        A(s, a) = Q(s, a) - V(s)

    Source: Sutton & Barto, "Reinforcement Learning: An Introduction", 2nd ed., 2018, eq. 13.11,
    http://incompleteideas.net/book/the-book-2nd.html.

    Args:
        return_t: returns or action values, float `[...]`.
        v_tm1: state values, float `[...]`.
    Returns:
        Advantages, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> state_value_baseline(jnp.array([3.0, 1.0]), jnp.array([1.0, 2.0]))
    Array([ 2., -1.], dtype=float32)
    """
    _check(return_t, v_tm1)
    return return_t - v_tm1


def batch_mean_baseline(return_t: Elements, mask: Mask | None = None, axis: int = 0) -> Elements:
    """Subtracts from every return the mean over the examples.

        A_i = R_i - b,    b = (1/N) sum_j R_j

    Source: Sutton & Barto (see `state_value_baseline`), section 13.4, with the mean of the batch as
    the baseline. It holds R_i itself, which shrinks the expected gradient by the factor (N-1)/N:
    `leave_one_out_baseline` does not.

    Args:
        return_t: returns, float `[...]`.
        mask: examples to count, bool or float `[...]`, nonzero is real; None for all.
        axis: axis of the examples. For time-major `[T, B]` returns, 1 gives a baseline per step.
    Returns:
        Advantages, float `[...]`; zero where masked.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> batch_mean_baseline(jnp.array([1.0, 2.0, 6.0]))
    Array([-2., -1.,  3.], dtype=float32)
    """
    _check(return_t)
    real, return_t = _masked(return_t, mask)
    count = jnp.maximum(real.sum(axis, keepdims=True), 1.0)
    return real * (return_t - return_t.sum(axis, keepdims=True) / count)


def leave_one_out_baseline(return_t: Elements, mask: Mask | None = None, axis: int = 0) -> Elements:
    """Subtracts from every return the mean of the *other* examples (RLOO).

        A_i = R_i - (1/(N-1)) sum_{j != i} R_j

    Source: Kool, van Hoof & Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019,
    https://openreview.net/forum?id=r1lgTGL5DE. An example without others (N = 1) gets zero.

    Args:
        return_t: returns, float `[...]`.
        mask: examples to count, bool or float `[...]`, nonzero is real; None for all.
        axis: axis of the examples.
    Returns:
        Advantages, float `[...]`; zero where masked.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> leave_one_out_baseline(jnp.array([1.0, 2.0, 6.0]))
    Array([-3. , -1.5,  4.5], dtype=float32)
    """
    _check(return_t)
    real, return_t = _masked(return_t, mask)
    others = real.sum(axis, keepdims=True) - 1.0
    baseline = (return_t.sum(axis, keepdims=True) - return_t) / jnp.maximum(others, 1.0)
    return jnp.where(others > 0, real * (return_t - baseline), 0.0)


def actor_critic(
    log_prob: Elements, return_t: Elements, v_tm1: Elements, entropy: Elements
) -> ActorCritic:
    """Returns the three terms of an advantage actor-critic loss (A2C).

        policy = -log pi(a|s) * (G - V(s))      G and this V constant
        value  = (G - V(s))^2 / 2               G constant
        entropy = -H(pi(.|s))

    Source: Mnih et al., "Asynchronous methods for deep reinforcement learning", 2016, section 4
    and algorithm S3, https://arxiv.org/abs/1602.01783. The 1/2 is ours: fold it into the weight.

    Args:
        log_prob: log pi(a|s) of the actions taken, float `[...]`.
        return_t: bootstrapped returns, float `[...]`.
        v_tm1: state values, float `[...]`.
        entropy: entropies of the policy, float `[...]`.
    Returns:
        `ActorCritic(policy, value, entropy)`, float `[...]`, to be weighted and added.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> one = jnp.ones(1)
    >>> [float(x[0]) for x in actor_critic(-one, 3 * one, one, 0.5 * one)]
    [2.0, 2.0, -0.5]
    """
    _check(log_prob, return_t, v_tm1, entropy)
    advantage = jax.lax.stop_gradient(return_t) - v_tm1
    return ActorCritic(reinforce(log_prob, advantage), 0.5 * advantage**2, -entropy)


def surrogate(log_ratio: Elements, advantage: Elements) -> Elements:
    """Weights advantages by the importance ratio (L^CPI), what TRPO maximises.

        loss = -ratio * A,    ratio = pi(a|s) / pi_old(a|s)

    Source: Schulman et al., "Trust region policy optimization", 2015, eq. 14,
    https://arxiv.org/abs/1502.05477.

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), float `[...]`.
        advantage: advantages under the old policy, float `[...]`; constants.
    Returns:
        Losses, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> surrogate(jnp.log(jnp.array([0.5, 2.0])), jnp.array([2.0, -1.0]))
    Array([-1.,  2.], dtype=float32)
    """
    _check(log_ratio, advantage)
    return -_ratio(log_ratio) * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_ratio: Elements,
    advantage: Elements,
    eps_low: Scalar = 0.2,
    eps_high: Scalar | None = None,
    dual_clip: Scalar = math.inf,
) -> Elements:
    """Bounds how much one update can gain from moving the ratio (L^CLIP of PPO).

        loss = -min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A)
        and, where A < 0:  loss = -max(that minimum, dual_clip * A)

    Both lines together are -A * clip(ratio, -inf, 1 + eps_high) for A >= 0 and
    -A * clip(ratio, 1 - eps_low, dual_clip) for A < 0, which is how they are computed. The gradient
    is zero only strictly outside: a ratio on the edge, and with eps 0 a ratio of 1, has all of it.

    Source: Schulman et al., "Proximal policy optimization algorithms", 2017, eq. 7,
    https://arxiv.org/abs/1707.06347; two epsilons from Yu et al., "DAPO", 2025, eq. 8,
    https://arxiv.org/abs/2503.14476; dual clip from Ye et al., "Mastering complex control in MOBA
    games with deep reinforcement learning", 2020, https://arxiv.org/abs/1912.09729.

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), float `[...]`.
        advantage: advantages under the old policy, float `[...]`; constants.
        eps_low: room below 1; `inf` for none clipped.
        eps_high: room above 1; None for `eps_low`. With both infinite this is `surrogate`.
        dual_clip: largest ratio that counts against an action, above 1 (often 3); `inf` for off.
    Returns:
        Losses, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> log_ratio = jnp.log(jnp.array([2.0, 0.5, 2.0, 0.5]))
    >>> clipped_surrogate(log_ratio, jnp.array([1.0, 1.0, -1.0, -1.0]), 0.25)
    Array([-1.25, -0.5 ,  2.  ,  0.75], dtype=float32)
    """
    _check(log_ratio, advantage)
    eps_high = eps_low if eps_high is None else eps_high
    chex.assert_rank([eps_low, eps_high, dual_clip], 0)
    advantage = jax.lax.stop_gradient(advantage)
    against = advantage < 0
    least = jnp.where(against, 1.0 - eps_low, -math.inf).astype(log_ratio.dtype)
    most = jnp.where(against, dual_clip, 1.0 + eps_high).astype(log_ratio.dtype)
    ratio = _ratio(log_ratio)
    # jnp.clip would halve the gradient on an edge, where the policy starts when eps is 0.
    ratio = jnp.where(ratio > most, most, jnp.where(ratio < least, least, ratio))
    return -ratio * advantage


def kl_penalized_surrogate(
    log_ratio: Elements, advantage: Elements, kl: Elements, beta: Scalar
) -> Elements:
    """Charges the surrogate for the distance from the old policy (L^KLPEN; TRPO as a penalty).

        loss = -(ratio * A - beta * KL[pi_old(.|s), pi(.|s)])

    Source: Schulman et al., "Proximal policy optimization algorithms", 2017, eq. 5 and 8,
    https://arxiv.org/abs/1707.06347. `jrl.losses.trust_region` adapts beta.

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), float `[...]`.
        advantage: advantages under the old policy, float `[...]`; constants.
        kl: divergences in the states, float `[...]`, differentiated.
        beta: price of a nat.
    Returns:
        Losses, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> kl_penalized_surrogate(jnp.zeros(2), jnp.array([2.0, -1.0]), jnp.array([0.5, 0.0]), 3.0)
    Array([-0.5,  1. ], dtype=float32)
    """
    _check(log_ratio, advantage, kl)
    chex.assert_rank(beta, 0)
    return surrogate(log_ratio, advantage) + beta * kl


def decoupled_clipped_surrogate(
    log_prob: Elements,
    proximal_log_prob: Elements,
    behaviour_log_prob: Elements,
    advantage: Elements,
    eps_low: Scalar = 0.2,
    eps_high: Scalar | None = None,
    dual_clip: Scalar = math.inf,
    weight_cap: Scalar = math.inf,
) -> Elements:
    """Clips around a recent policy while the data come from an older one (decoupled PPO).

        loss = -w * min(u * A, clip(u, 1 - eps_low, 1 + eps_high) * A)
        u = pi / pi_prox,    w = min(pi_prox / pi_behaviour, weight_cap)

    Source: Hilton, Cobbe & Schulman, "Batch size-invariance for policy optimization", 2022,
    https://arxiv.org/abs/2110.00641; Fu et al., "AReaL", 2025, eq. 5,
    https://arxiv.org/abs/2505.24298. The cap is not in the papers; `inf` leaves it out. With
    pi_prox = pi_behaviour this is `clipped_surrogate`.

    Args:
        log_prob: log pi(a|s), float `[...]`, differentiated.
        proximal_log_prob: the same of the centre of the clipping, float `[...]`; a constant.
        behaviour_log_prob: the same of the policy that acted, float `[...]`; a constant.
        advantage: advantages, float `[...]`; constants.
        eps_low, eps_high, dual_clip: as in `clipped_surrogate`, of u.
        weight_cap: largest w.
    Returns:
        Losses, float `[...]`.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> log = lambda x: jnp.log(jnp.array([x]))
    >>> decoupled_clipped_surrogate(log(0.75), log(0.5), log(0.25), jnp.ones(1), 0.25)
    Array([-2.5], dtype=float32)
    """
    _check(log_prob, proximal_log_prob, behaviour_log_prob, advantage)
    chex.assert_rank(weight_cap, 0)
    proximal_log_prob = jax.lax.stop_gradient(proximal_log_prob)
    weight = _ratio(proximal_log_prob - jax.lax.stop_gradient(behaviour_log_prob))
    loss = clipped_surrogate(log_prob - proximal_log_prob, advantage, eps_low, eps_high, dual_clip)
    return jnp.minimum(weight, weight_cap).astype(loss.dtype) * loss


def entropy_bonus(logits: Float[Array, "*batch A"]) -> Elements:
    """Rewards a categorical policy for being undecided.

        loss = -H = sum_a pi(a|s) log pi(a|s)

    Source: Williams & Peng, "Function optimization using connectionist reinforcement learning
    algorithms", 1991, https://doi.org/10.1080/09540099108946587.

    Args:
        logits: unnormalised log-probabilities, float `[..., A]`; -inf forbids an action.
    Returns:
        Negative entropies in nats, float `[...]`.
    Raises:
        AssertionError: no floats, or no axis of actions.

    >>> entropy_bonus(jnp.array([[0.0, 0.0], [0.0, -jnp.inf]])).round(4)
    Array([-0.6931,  0.    ], dtype=float32)
    """
    chex.assert_type(logits, float)
    chex.assert_axis_dimension_gt(logits, axis=-1, val=0)
    log_probs = jax.nn.log_softmax(logits)
    # An impossible action adds 0 * -inf; the inner `where` keeps the NaN out of the gradient too.
    finite = jnp.where(jnp.isneginf(logits), 0.0, log_probs)
    return jnp.sum(jnp.exp(log_probs) * finite, axis=-1)


def deterministic_policy_gradient(action: Elements, dq_da: Elements) -> Elements:
    """Moves actions up the slope of the action value (DPG).

        loss = -a * dQ(s, a)/da,    so that dloss/da = -dQ/da

    Source: Silver et al., "Deterministic policy gradient algorithms", 2014, eq. 9,
    https://proceedings.mlr.press/v32/silver14.html. Only the gradient means something, not the
    value. Where the critic is at hand, minimising -Q(s, pi(s)) has the same gradient.

    Args:
        action: pi(s), float `[...]`, the dimensions of the action among the axes.
        dq_da: slopes at these actions, float `[...]`; constants.
    Returns:
        Losses, float `[...]`, one per dimension of the action.
    Raises:
        AssertionError: no floats, or shapes that differ.

    >>> jax.grad(lambda a: deterministic_policy_gradient(a, jnp.float32(3.0)))(jnp.float32(0.5))
    Array(-3., dtype=float32)
    """
    _check(action, dq_da)
    return -action * jax.lax.stop_gradient(dq_da)


def _check(*arrays):
    """Asserts floats of equal shape."""
    chex.assert_type(list(arrays), float)
    chex.assert_equal_shape(arrays)


def _masked(return_t, mask):
    """Returns 1 for real and 0 for masked examples, and zeros instead of the latter's returns."""
    if mask is None:
        return jnp.ones_like(return_t), return_t
    chex.assert_equal_shape([return_t, mask])
    return (mask != 0).astype(return_t.dtype), jnp.where(mask != 0, return_t, 0.0)


def _ratio(log_ratio):
    """Exponentiates, saturating long before the product with an advantage overflows."""
    bound = 0.5 * math.log(float(jnp.finfo(log_ratio.dtype).max))
    return jnp.exp(jnp.minimum(log_ratio, bound))
