"""Acrobot-v1: swing the free end of a two-link pendulum above a bar, by a torque at the elbow.

    theta2'' = (u + d2 phi1 / d1 - m2 l1 c2 theta1'^2 sin theta2 - phi2)
               / (m2 c2^2 + I - d2^2 / d1)
    theta1'' = -(d2 theta2'' + phi1) / d1

    d1   = m1 c1^2 + m2 (l1^2 + c2^2 + 2 l1 c2 cos theta2) + 2 I
    d2   = m2 (c2^2 + l1 c2 cos theta2) + I
    phi2 = m2 c2 g sin(theta1 + theta2)
    phi1 = -m2 l1 c2 theta2' (theta2' + 2 theta1') sin theta2 + (m1 c1 + m2 l1) g sin theta1 + phi2

integrated by one Runge-Kutta step of order 4 of `tau` seconds, after which the angles are wrapped
to [-pi, pi) and the angular velocities clipped, as part of the task. Both angles are zero when
the links hang down, theta2 is relative to the first link. Reward -1 for every step, 0 for the
one that reaches the goal; terminated when the tip is one first-link length above the axis,
-cos theta1 - cos(theta1 + theta2) > 1; truncated after 500 steps. Source: Sutton 1996,
"Generalization in reinforcement learning: successful examples using sparse coarse coding",
https://proceedings.neurips.cc/paper/1995/hash/8f1d43620bc6bb580df6e80b0dc05c48-Abstract.html,
with the equations of Sutton & Barto's book, as in Gymnasium's `Acrobot-v1`, which it equals
step for step (in float32).
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box, Discrete
from jrl.types import Array, Key, Leaf

__all__ = ["Params", "State", "make"]


class Params(struct.PyTreeNode):
    """Physical constants, SI units; centres of mass are measured from the link's upper end."""

    gravity: Leaf = 9.8
    mass1: Leaf = 1.0
    mass2: Leaf = 1.0
    length1: Leaf = 1.0
    centre1: Leaf = 0.5
    centre2: Leaf = 0.5
    inertia: Leaf = 1.0
    torque: Leaf = 1.0
    tau: Leaf = 0.2
    theta1_dot_limit: Leaf = 4 * math.pi
    theta2_dot_limit: Leaf = 9 * math.pi
    max_steps_in_episode: Leaf = 500


class State(struct.PyTreeNode):
    """Angles of the links (rad), their velocities (rad/s), steps taken."""

    theta1: Leaf
    theta2: Leaf
    theta1_dot: Leaf
    theta2_dot: Leaf
    time: Leaf


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws all four coordinates from U(-0.1, 0.1)."""
    theta1, theta2, theta1_dot, theta2_dot = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
    state = State(theta1, theta2, theta1_dot, theta2_dot, jnp.int32(0))
    return observe(state), state


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Applies the torque -1, 0 or 1 N m (action 0, 1, 2) to the joint for `tau` seconds."""
    torque = params.torque * (action - 1)
    before = (state.theta1, state.theta2, state.theta1_dot, state.theta2_dot)
    theta1, theta2, theta1_dot, theta2_dot = _runge_kutta(before, torque, params)
    state = State(
        theta1=_wrap(theta1),
        theta2=_wrap(theta2),
        theta1_dot=jnp.clip(theta1_dot, -params.theta1_dot_limit, params.theta1_dot_limit),
        theta2_dot=jnp.clip(theta2_dot, -params.theta2_dot_limit, params.theta2_dot_limit),
        time=state.time + 1,
    )
    terminated = -jnp.cos(state.theta1) - jnp.cos(state.theta1 + state.theta2) > 1.0
    truncated = state.time >= params.max_steps_in_episode
    reward = jnp.where(terminated, jnp.float32(0.0), -1.0)
    return observe(state), state, reward, terminated, truncated, {}


# Four separate arrays, not one of shape [4]: a single environment is then 8 times faster on a CPU.
Coordinates = tuple[Array, Array, Array, Array]


def _runge_kutta(y: Coordinates, torque: Array, params: Params) -> Coordinates:
    def ahead(time, slope):
        return jax.tree.map(lambda x, dx: x + time * dx, y, slope)

    tau = params.tau
    k1 = _derivative(y, torque, params)
    k2 = _derivative(ahead(tau / 2, k1), torque, params)
    k3 = _derivative(ahead(tau / 2, k2), torque, params)
    k4 = _derivative(ahead(tau, k3), torque, params)
    mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
    return ahead(tau, mean)


def _derivative(y: Coordinates, torque: Array, params: Params) -> Coordinates:
    theta1, theta2, theta1_dot, theta2_dot = y
    m1, m2, l1, inertia = params.mass1, params.mass2, params.length1, params.inertia
    c1, c2, g = params.centre1, params.centre2, params.gravity
    cos2, sin2 = jnp.cos(theta2), jnp.sin(theta2)
    d1 = m1 * c1**2 + m2 * (l1**2 + c2**2 + 2 * l1 * c2 * cos2) + 2 * inertia
    d2 = m2 * (c2**2 + l1 * c2 * cos2) + inertia
    coupling = m2 * l1 * c2 * sin2
    phi2 = m2 * c2 * g * jnp.sin(theta1 + theta2)
    phi1 = (m1 * c1 + m2 * l1) * g * jnp.sin(theta1) + phi2
    phi1 = phi1 - coupling * theta2_dot * (theta2_dot + 2 * theta1_dot)
    acc2 = (torque + d2 / d1 * phi1 - coupling * theta1_dot**2 - phi2) / (
        m2 * c2**2 + inertia - d2**2 / d1
    )
    acc1 = -(d2 * acc2 + phi1) / d1
    return theta1_dot, theta2_dot, acc1, acc2


def _wrap(angle: Array) -> Array:
    turns = jnp.floor((angle + math.pi) / (2 * math.pi))
    return angle - 2 * math.pi * turns


def observe(state: State) -> Array:
    """Returns (cos theta1, sin theta1, cos theta2, sin theta2, theta1', theta2')."""
    cos1, sin1 = jnp.cos(state.theta1), jnp.sin(state.theta1)
    cos2, sin2 = jnp.cos(state.theta2), jnp.sin(state.theta2)
    return jnp.stack([cos1, sin1, cos2, sin2, state.theta1_dot, state.theta2_dot])


def observation_space(params: Params) -> Box:
    """Returns the box of observations."""
    high = (1.0, 1.0, 1.0, 1.0, params.theta1_dot_limit, params.theta2_dot_limit)
    return Box(tuple(-bound for bound in high), high, (6,))


def action_space(params: Params) -> Discrete:
    """Returns {torque -1, none, torque 1}."""
    return Discrete(3)


def make() -> Environment:
    """Makes Acrobot-v1.

    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.int32(1), env.default_params)[2]
    Array(-1., dtype=float32)
    """
    return Environment("Acrobot-v1", reset, step, observation_space, action_space, Params())
