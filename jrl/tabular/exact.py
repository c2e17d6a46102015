"""Exact solutions of finite Markov decision processes: distributions, values, policies.

    Q(s, a) = r(s, a) + gamma sum_s' T(s', s, a) V(s'),   V(s) = sum_a pi(a | s) Q(s, a)

Axes: S states, A actions, T time steps. A policy is its table of probabilities `policy` [S, A]; a
deterministic one is an int32 vector of `actions` [S], and `deterministic` turns one into the
other. The discount is an argument everywhere. It may be 1 where the policy is sure to reach a
terminal state, because the values of terminal states are fixed at zero.

Everything is pure and runs under `jit`, and under `vmap` over processes, policies and discounts.
Equation numbers are those of Sutton & Barto 2018, http://incompleteideas.net/book/the-book-2nd.html.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrl.envs.tabular import TabularMDP
from jrl.losses.value import state_value
from jrl.types import Array, Float, Int, Scalar

__all__ = [
    "Evaluation",
    "Solution",
    "action_values",
    "deterministic",
    "evaluate",
    "evaluate_iteratively",
    "finite_horizon_values",
    "next_distribution",
    "occupancy",
    "policy_iteration",
    "policy_transition",
    "state_distributions",
    "value_iteration",
]


class Evaluation(NamedTuple):
    """V f32[S], sweeps i32 made, residual f32: the largest change in the last sweep."""

    values: Float[Array, " S"]
    sweeps: Int[Array, ""]
    residual: Float[Array, ""]


class Solution(NamedTuple):
    """V* f32[S], a greedy action i32[S] of each state, sweeps i32, residual f32 (as above)."""

    values: Float[Array, " S"]
    actions: Int[Array, " S"]
    sweeps: Int[Array, ""]
    residual: Float[Array, ""]


def deterministic(actions: Int[Array, " S"], num_actions: int) -> Float[Array, "S A"]:
    """Makes the table of probabilities of a deterministic policy.

    >>> deterministic(jnp.array([1, 0]), 2)
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    return jax.nn.one_hot(actions, num_actions)


def policy_transition(mdp: TabularMDP, policy: Float[Array, "S A"]) -> Float[Array, "S S"]:
    """Returns the transition operator under a policy: `P[i, j] = sum_k T[i, j, k] pi[j, k]`.

    Columns sum to one: `P @ mu` moves a distribution forward, `v @ P` expects a value.

    >>> from jrl.envs.chains import corridor
    >>> policy_transition(corridor(1), jnp.full((3, 2), 0.5))[:, 1]
    Array([0.5, 0. , 0.5], dtype=float32)
    """
    return jnp.einsum("ijk,jk->ij", mdp.transition, policy)


def next_distribution(
    mdp: TabularMDP, mu: Float[Array, " S"], actions: Float[Array, " A"] | Float[Array, "S A"]
) -> Float[Array, " S"]:
    """Moves the distribution of states one step: `mu'[i] = sum_jk T[i, j, k] mu[j] xi[k]`.

    `actions` is xi [A] (the same in every state, as in the lecture), or a policy pi [S, A], whose
    pi[j, k] then takes the place of xi[k]. Source: S. Levine, CS 285, lecture 4,
    https://rail.eecs.berkeley.edu/deep-reinforcement-learning/ (definition of the MDP).

    >>> from jrl.envs.chains import corridor
    >>> next_distribution(corridor(1), jnp.array([0.0, 1.0, 0.0]), jnp.array([0.25, 0.75]))
    Array([0.25, 0.  , 0.75], dtype=float32)
    """
    weights = "k" if actions.ndim == 1 else "jk"
    return jnp.einsum(f"ijk,j,{weights}->i", mdp.transition, mu, actions)


def state_distributions(
    mdp: TabularMDP, actions: Float[Array, "T A"] | Float[Array, "T S A"]
) -> Float[Array, "T+1 S"]:
    """Returns mu_0 .. mu_T: `mdp.initial`, then one `next_distribution` for each row of `actions`.

    >>> from jrl.envs.chains import corridor
    >>> state_distributions(corridor(1), jnp.array([[0.0, 1.0], [0.5, 0.5]]))[:, 2]
    Array([0., 1., 1.], dtype=float32)
    """

    def advance(mu, row):
        mu = next_distribution(mdp, mu, row)
        return mu, mu

    _, later = jax.lax.scan(advance, mdp.initial, actions)
    return jnp.concatenate([mdp.initial[None], later])


def occupancy(
    mdp: TabularMDP, policy: Float[Array, "S A"], discount: Scalar
) -> Float[Array, "S A"]:
    """Returns `d(s, a) = (1 - gamma) sum_t gamma^t p(s_t = s, a_t = a)`, which sums to one.

    Solved as `(I - gamma P) d = (1 - gamma) mu_0`, so `discount` must be less than 1. Terminal
    states keep their mass for ever. Source: Puterman 1994, section 6.9.2,
    https://doi.org/10.1002/9780470316887.

    >>> from jrl.envs.chains import corridor
    >>> occupancy(corridor(1), jnp.full((3, 2), 0.5), 0.5).sum(1)
    Array([0.25, 0.5 , 0.25], dtype=float32)
    """
    system = jnp.eye(mdp.num_states) - discount * policy_transition(mdp, policy)
    states = jnp.linalg.solve(system, (1 - discount) * mdp.initial)
    return states[:, None] * policy


def action_values(
    mdp: TabularMDP, values: Float[Array, " S"], discount: Scalar
) -> Float[Array, "S A"]:
    """Looks one step ahead: `Q(s, a) = r(s, a) + gamma sum_s' T(s', s, a) V(s')` (eq. 4.6).

    >>> from jrl.envs.chains import corridor
    >>> action_values(corridor(2), jnp.array([0.0, 0.0, 1.0, 0.0]), 0.5)[1]
    Array([0. , 0.5], dtype=float32)
    """
    return mdp.reward + discount * jnp.einsum("ijk,i->jk", mdp.transition, values)


def evaluate(mdp: TabularMDP, policy: Float[Array, "S A"], discount: Scalar) -> Float[Array, " S"]:
    """Returns V of a policy by one linear solve: `(I - gamma P') V = r_pi` (eq. 3.14).

    Terminal states leave the system, so discount 1 works for a policy that surely ends; for one
    that does not, the answer with discount 1 is infinite or NaN.

    >>> from jrl.envs.chains import corridor
    >>> [round(float(v), 3) for v in evaluate(corridor(3), jnp.full((5, 2), 0.5), 1.0)]
    [0.0, 0.25, 0.5, 0.75, 0.0]
    """
    into = jnp.where(mdp.terminal[:, None], 0.0, policy_transition(mdp, policy))
    system = jnp.eye(mdp.num_states) - discount * into.T
    return jnp.linalg.solve(system, state_value(mdp.reward, policy))


def evaluate_iteratively(
    mdp: TabularMDP,
    policy: Float[Array, "S A"],
    discount: Scalar,
    tolerance: Scalar = 1e-6,
    max_sweeps: int | Int[Array, ""] = 10_000,
) -> Evaluation:
    """Sweeps `V <- sum_a pi Q` from V = 0 until no value moves by more than `tolerance`.

    Then `|V - V_pi| <= residual * gamma / (1 - gamma)`. `max_sweeps` bounds the work: float32
    cannot resolve a tolerance below about 1e-7 of the values. Section 4.1, synchronous sweeps.

    >>> from jrl.envs.chains import corridor
    >>> values = evaluate_iteratively(corridor(3), jnp.full((5, 2), 0.5), 1.0).values
    >>> [round(float(v), 3) for v in values]
    [0.0, 0.25, 0.5, 0.75, 0.0]
    """

    def backup(values):
        return state_value(action_values(mdp, values, discount), policy)

    return _iterate(backup, mdp, tolerance, max_sweeps)


def value_iteration(
    mdp: TabularMDP,
    discount: Scalar,
    tolerance: Scalar = 1e-6,
    max_sweeps: int | Int[Array, ""] = 10_000,
) -> Solution:
    """Sweeps `V <- max_a Q` from V = 0 until no value moves by more than `tolerance` (eq. 4.10).

    Returns: values, a greedy policy for them (the first of equal actions), the number of sweeps
    and the change in the last one; `|V - V*| <= residual * gamma / (1 - gamma)`, and the policy
    loses at most twice that (Puterman 1994, theorem 6.3.1).

    >>> from jrl.envs.chains import corridor
    >>> solution = value_iteration(corridor(3), 0.5)
    >>> solution.values, int(solution.sweeps)
    (Array([0.  , 0.25, 0.5 , 1.  , 0.  ], dtype=float32), 4)
    """

    def backup(values):
        return jnp.max(action_values(mdp, values, discount), axis=-1)

    values, sweeps, residual = _iterate(backup, mdp, tolerance, max_sweeps)
    actions = jnp.argmax(action_values(mdp, values, discount), axis=-1)
    return Solution(values, actions.astype(jnp.int32), sweeps, residual)


def policy_iteration(
    mdp: TabularMDP,
    discount: Scalar,
    tolerance: Scalar = 1e-6,
    max_sweeps: int | Int[Array, ""] = 1_000,
) -> Solution:
    """Alternates an exact `evaluate` and a greedy step until no action changes (section 4.3).

    An action is given up only for one better by more than `tolerance * max |Q|`: rounding can then
    not make equal actions alternate for ever. `sweeps` counts evaluations, and `residual` is
    that of a further sweep of value iteration. With discount 1, the first policy, greedy for
    V = 0, must surely end.

    >>> from jrl.envs.chains import corridor
    >>> policy_iteration(corridor(3), 0.5).values
    Array([0.  , 0.25, 0.5 , 1.  , 0.  ], dtype=float32)
    """

    def proceed(carry):
        _, _, sweeps, _, changed = carry
        return changed & (sweeps < max_sweeps)

    def improve(carry):
        actions, _, sweeps, _, _ = carry
        values = evaluate(mdp, deterministic(actions, mdp.num_actions), discount)
        q = action_values(mdp, values, discount)
        kept = jnp.take_along_axis(q, actions[:, None], axis=-1)[:, 0]
        better = jnp.max(q, axis=-1) > kept + tolerance * jnp.max(jnp.abs(q))
        actions = jnp.where(better, jnp.argmax(q, axis=-1).astype(jnp.int32), actions)
        residual = jnp.max(jnp.abs(jnp.max(q, axis=-1) - values))
        return actions, values, sweeps + 1, residual, better.any()

    actions = jnp.argmax(mdp.reward, axis=-1).astype(jnp.int32)
    nothing = jnp.zeros_like(mdp.reward[:, 0])
    start = (actions, nothing, jnp.int32(0), jnp.float32(jnp.inf), jnp.bool_(True))
    actions, values, sweeps, residual, _ = jax.lax.while_loop(proceed, improve, start)
    return Solution(values, actions, sweeps, residual)


def finite_horizon_values(
    mdp: TabularMDP, policy: Float[Array, "S A"], horizon: int, discount: Scalar = 1.0
) -> tuple[Float[Array, "T S A"], Float[Array, "T S"]]:
    """Returns Q and V of each time: `Q(s_t, a_t) = sum_{t'=t}^{T} E[r(s_t', a_t') | s_t, a_t]`.

    Row t holds the values with the rewards of steps t .. horizon - 1 still to come; the last row
    is the reward itself. Source: S. Levine, CS 285, lecture 4, "value functions",
    https://rail.eecs.berkeley.edu/deep-reinforcement-learning/. Raises ValueError when `horizon`
    is less than 1.

    >>> from jrl.envs.chains import corridor
    >>> q, v = finite_horizon_values(corridor(2), jnp.full((4, 2), 0.5), 2)
    >>> v[:, 1:3]
    Array([[0.25, 0.5 ],
           [0.  , 0.5 ]], dtype=float32)
    """
    if horizon < 1:
        raise ValueError(f"horizon: must be at least 1, got {horizon}")

    def back(values, _):
        q = action_values(mdp, values, discount)
        values = state_value(q, policy)
        return values, (q, values)

    nothing = jnp.zeros_like(mdp.reward[:, 0])
    _, (q, v) = jax.lax.scan(back, nothing, None, length=horizon, reverse=True)
    return q, v


def _iterate(
    backup: Callable, mdp: TabularMDP, tolerance: Scalar, max_sweeps: int | Int[Array, ""]
) -> Evaluation:
    def proceed(carry: Evaluation):
        return (carry.residual > tolerance) & (carry.sweeps < max_sweeps)

    def sweep(carry: Evaluation):
        values = backup(carry.values)
        return Evaluation(values, carry.sweeps + 1, jnp.max(jnp.abs(values - carry.values)))

    start = Evaluation(jnp.zeros_like(mdp.reward[:, 0]), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(proceed, sweep, start)
