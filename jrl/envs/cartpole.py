"""CartPole-v1: balance a pole on a cart by pushing it left or right.

    theta'' = (g sin theta - cos theta (F + m_p l theta'^2 sin theta) / M)
              / (l (4/3 - m_p cos^2 theta / M))
    x''     = (F + m_p l (theta'^2 sin theta - theta'' cos theta)) / M

with M = m_c + m_p, integrated by an explicit Euler step of `tau` seconds. Reward 1 for every
step, the failing one included; terminated when |x| > 2.4 m or |theta| > 12 degrees; truncated
after 500 steps. Source: Barto, Sutton & Anderson 1983, as in Gymnasium's `CartPole-v1`, which
it equals step for step (in float32).
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
    """Physical constants, SI units."""

    gravity: Leaf = 9.8
    cart_mass: Leaf = 1.0
    pole_mass: Leaf = 0.1
    pole_half_length: Leaf = 0.5
    force: Leaf = 10.0
    tau: Leaf = 0.02
    x_limit: Leaf = 2.4
    theta_limit: Leaf = 12 * 2 * math.pi / 360
    max_steps_in_episode: Leaf = 500


class State(struct.PyTreeNode):
    """Position (m), velocity, angle from upright (rad), angular velocity, steps taken."""

    x: Leaf
    x_dot: Leaf
    theta: Leaf
    theta_dot: Leaf
    time: Leaf


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws all four coordinates from U(-0.05, 0.05)."""
    x, x_dot, theta, theta_dot = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
    state = State(x, x_dot, theta, theta_dot, jnp.int32(0))
    return observe(state), state


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Pushes with `force` to the right (action 1) or to the left (action 0) for `tau` seconds."""
    force = jnp.where(action == 1, params.force, -params.force)
    cos, sin = jnp.cos(state.theta), jnp.sin(state.theta)
    mass = params.cart_mass + params.pole_mass
    moment = params.pole_mass * params.pole_half_length
    push = (force + moment * state.theta_dot**2 * sin) / mass
    theta_acc = (params.gravity * sin - cos * push) / (
        params.pole_half_length * (4 / 3 - params.pole_mass * cos**2 / mass)
    )
    x_acc = push - moment * theta_acc * cos / mass
    state = State(
        x=state.x + params.tau * state.x_dot,
        x_dot=state.x_dot + params.tau * x_acc,
        theta=state.theta + params.tau * state.theta_dot,
        theta_dot=state.theta_dot + params.tau * theta_acc,
        time=state.time + 1,
    )
    terminated = (jnp.abs(state.x) > params.x_limit) | (jnp.abs(state.theta) > params.theta_limit)
    truncated = state.time >= params.max_steps_in_episode
    return observe(state), state, jnp.float32(1.0), terminated, truncated, {}


def observe(state: State) -> Array:
    """Returns (x, x', theta, theta')."""
    return jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot])


def observation_space(params: Params) -> Box:
    """Returns the box of observations, failing ones included; velocities are unbounded."""
    high = (2 * params.x_limit, math.inf, 2 * params.theta_limit, math.inf)
    return Box(tuple(-bound for bound in high), high, (4,))


def action_space(params: Params) -> Discrete:
    """Returns {left, right}."""
    return Discrete(2)


def make() -> Environment:
    """Makes CartPole-v1.

    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.int32(1), env.default_params)[2]
    Array(1., dtype=float32)
    """
    return Environment("CartPole-v1", reset, step, observation_space, action_space, Params())
