"""Trust regions: coefficients of a KL penalty that adapt, and TRPO's scalar decisions.

A controller is a pure function `(state, kl) -> state` whose state holds its settings as numbers, so
that `vmap` over them runs many at once. A fixed coefficient is the same program with `factor=1`
(`kl_penalty`) or `horizon=inf` (`proportional_kl`).
"""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp

from jrl.types import Array, Bool, Float, Leaf, Scalar

__all__ = [
    "KLPenalty",
    "ProportionalKL",
    "accept_step",
    "fixed_kl",
    "init_kl_penalty",
    "init_proportional_kl",
    "kl_penalty",
    "proportional_kl",
    "step_scale",
]

Number = Float[Array, ""]


class KLPenalty(NamedTuple):
    """State of `kl_penalty`; every leaf is a number."""

    beta: Leaf
    target: Leaf
    tolerance: Leaf
    factor: Leaf
    least: Leaf
    most: Leaf


class ProportionalKL(NamedTuple):
    """State of `proportional_kl`; every leaf is a number."""

    beta: Leaf
    target: Leaf
    horizon: Leaf
    clip: Leaf


def init_kl_penalty(
    beta: Scalar = 1.0,
    target: Scalar = 0.01,
    tolerance: Scalar = 1.5,
    factor: Scalar = 2.0,
    least: Scalar = 0.0,
    most: Scalar = math.inf,
) -> KLPenalty:
    """Returns the state of `kl_penalty`, as float arrays.

    Args:
        beta: coefficient to begin with. The paper starts at 1 and says that it hardly matters.
        target: divergence to hold, in nats.
        tolerance: nothing changes between target / tolerance and target * tolerance.
        factor: beta is multiplied or divided by it; 1 keeps beta fixed.
        least, most: bounds of beta. The paper has none, but then a policy that stays near the old
            one halves a float32 to zero in some 130 updates, and doubling cannot undo that.
    Returns:
        `KLPenalty` of floats `[]`.
    Raises:
        AssertionError: something other than a number.

    >>> float(init_kl_penalty(beta=3.0).beta)
    3.0
    """
    return KLPenalty(*_numbers(beta, target, tolerance, factor, least, most))


def kl_penalty(state: KLPenalty, kl: Scalar) -> KLPenalty:
    """Halves or doubles the coefficient when the divergence leaves its band (PPO's rule).

        kl < target / 1.5:  beta <- beta / 2
        kl > target * 1.5:  beta <- beta * 2

    Source: Schulman, Wolski, Dhariwal, Radford & Klimov, "Proximal policy optimization
    algorithms", 2017, section 4, https://arxiv.org/abs/1707.06347. A NaN changes nothing.

    Args:
        state: from `init_kl_penalty`.
        kl: mean divergence KL[pi_old, pi] after the update, float `[]`.
    Returns:
        The state with the next beta.
    Raises:
        AssertionError: `kl` is no floating-point number.

    >>> state = init_kl_penalty(beta=1.0, target=0.1)
    >>> [float(kl_penalty(state, kl).beta) for kl in (0.06, 0.07, 0.14, 0.16)]
    [0.5, 1.0, 1.0, 2.0]
    """
    chex.assert_type([state.beta, kl], float)
    chex.assert_rank([*state, kl], 0)
    near = kl < state.target / state.tolerance
    far = kl > state.target * state.tolerance
    scale = jnp.where(far, state.factor, jnp.where(near, 1.0 / state.factor, 1.0))
    return state._replace(beta=jnp.clip(state.beta * scale, state.least, state.most))


def init_proportional_kl(
    beta: Scalar = 0.2, target: Scalar = 6.0, horizon: Scalar = 10_000.0, clip: Scalar = 0.2
) -> ProportionalKL:
    """Returns the state of `proportional_kl`, as float arrays.

    Args:
        beta: coefficient to begin with.
        target: divergence to hold, in nats (per response in the paper's use).
        horizon: examples in which beta can change by the factor e^clip; `inf` keeps it fixed.
        clip: largest relative error that counts.
    Returns:
        `ProportionalKL` of floats `[]`.
    Raises:
        AssertionError: something other than a number.

    >>> float(init_proportional_kl(target=2.0).target)
    2.0
    """
    return ProportionalKL(*_numbers(beta, target, horizon, clip))


def proportional_kl(state: ProportionalKL, kl: Scalar, n: Scalar = 1.0) -> ProportionalKL:
    """Moves the logarithm of the coefficient in proportion to the relative error.

        error = clip(kl / target - 1, -0.2, 0.2)
        beta <- beta * (1 + error * n / horizon)

    Source: Ziegler et al., "Fine-tuning language models from human preferences", 2019, section
    2.2, https://arxiv.org/abs/1909.08593, whose K_beta is n / horizon.

    Args:
        state: from `init_proportional_kl`.
        kl: mean divergence from the reference, float `[]`.
        n: examples since the last update, a floating-point number.
    Returns:
        The state with the next beta.
    Raises:
        AssertionError: `kl` or `n` is no floating-point number.

    >>> state = init_proportional_kl(beta=1.0, target=2.0, horizon=10.0)
    >>> [round(float(proportional_kl(state, kl, 5.0).beta), 3) for kl in (1.0, 2.0, 2.2, 9.0)]
    [0.9, 1.0, 1.05, 1.1]
    """
    chex.assert_type([state.beta, kl, n], float)
    chex.assert_rank([*state, kl, n], 0)
    error = jnp.clip(kl / state.target - 1.0, -state.clip, state.clip)
    return state._replace(beta=state.beta * (1.0 + error * n / state.horizon))


def fixed_kl(state: KLPenalty | ProportionalKL, kl: Scalar) -> KLPenalty | ProportionalKL:
    """Leaves the coefficient as it is.

        beta <- beta

    Source: the fixed KL penalty of Schulman et al. 2017 (see `kl_penalty`), table 1.

    Args:
        state: of any controller.
        kl: not used; here so that it can stand in a controller's place.
    Returns:
        The same state.
    Raises:
        Nothing.

    >>> float(fixed_kl(init_kl_penalty(beta=3.0), 9.0).beta)
    3.0
    """
    del kl
    return state


def step_scale(quadratic: Scalar, delta: Scalar) -> Number:
    """Scales a search direction to the edge of the trust region, where KL = delta.

        scale = sqrt(2 delta / (x^T H x)),    H the Hessian of the KL, x the direction

    Source: Schulman, Levine, Moritz, Jordan & Abbeel, "Trust region policy optimization", 2015,
    appendix C, https://arxiv.org/abs/1502.05477. A direction of no curvature gets scale 0.

    Args:
        quadratic: x^T H x, float `[]`.
        delta: largest mean KL, float `[]`.
    Returns:
        The factor, float `[]`.
    Raises:
        AssertionError: not floating-point numbers.

    >>> step_scale(jnp.float32(0.5), 0.01)
    Array(0.2, dtype=float32)
    """
    chex.assert_type([quadratic, delta], float)
    chex.assert_rank([quadratic, delta], 0)
    curved = quadratic > 0
    return jnp.where(curved, jnp.sqrt(2.0 * delta / jnp.where(curved, quadratic, 1.0)), 0.0)


def accept_step(
    improvement: Scalar,
    kl: Scalar,
    delta: Scalar,
    expected_improvement: Scalar = 0.0,
    accept_ratio: Scalar = 0.0,
) -> Bool[Array, ""]:
    """Decides a backtracking line search under the hard constraint of TRPO.

        improvement > accept_ratio * expected_improvement   and   kl <= delta

    Source: Schulman et al. 2015 (see `step_scale`), appendix C; the comparison with a share of the
    linear prediction is that of the authors' code (0.1). A NaN is refused.

    Args:
        improvement: surrogate objective after the step minus before, float `[]`.
        kl: mean divergence KL[pi_old, pi] after the step, float `[]`.
        delta: largest mean KL, float `[]`.
        expected_improvement: gradient times step, float `[]`.
        accept_ratio: share of it that is asked for; 0 asks for any improvement.
    Returns:
        Whether to take the step, bool `[]`.
    Raises:
        AssertionError: not floating-point numbers.

    >>> [bool(accept_step(0.1, kl, 0.01)) for kl in (0.009, 0.011)]
    [True, False]
    """
    numbers = [improvement, kl, delta, expected_improvement, accept_ratio]
    chex.assert_type(numbers, float)
    chex.assert_rank(numbers, 0)
    enough = jnp.asarray(improvement) > accept_ratio * expected_improvement
    return enough & (jnp.asarray(kl) <= delta)


def _numbers(*values):
    """Turns Python floats into strong-typed arrays, so that a state keeps its types in a scan."""
    chex.assert_type(list(values), float)
    chex.assert_rank(list(values), 0)
    dtype = jnp.result_type(float, *values)
    return [jnp.asarray(x, dtype) for x in values]
