"""Pendulum-v1: swing a rod up and hold it there by a torque too weak to lift it at once.

    theta' <- clip(theta' + tau (3 g / (2 l) sin theta + 3 / (m l^2) clip(u, +-2)), +-8)
    theta  <- theta + tau theta'
    reward  = -(wrap(theta)^2 + 0.1 theta'^2 + 0.001 clip(u, +-2)^2)   of the state before the step

with theta = 0 upright and wrap to [-pi, pi). Both clips are part of the task. It never
terminates; truncated after 200 steps. Source: Gymnasium's `Pendulum-v1`, which it equals step
for step (in float32); a task of this kind is in Doya 2000, "Reinforcement learning in continuous
time and space", https://doi.org/10.1162/089976600300015961.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box
from jrl.types import Array, Key, Leaf

__all__ = ["Params", "State", "make"]


class Params(struct.PyTreeNode):
    """Physical constants, SI units."""

    gravity: Leaf = 10.0
    mass: Leaf = 1.0
    length: Leaf = 1.0
    max_torque: Leaf = 2.0
    max_speed: Leaf = 8.0
    tau: Leaf = 0.05
    max_steps_in_episode: Leaf = 200


class State(struct.PyTreeNode):
    """Angle from upright (rad, not wrapped: it counts turns), angular velocity, steps taken."""

    theta: Leaf
    theta_dot: Leaf
    time: Leaf


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws the angle from U(-pi, pi) and its velocity from U(-1, 1)."""
    theta, theta_dot = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
    state = State(math.pi * theta, theta_dot, jnp.int32(0))
    return observe(state), state


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Applies the torque `action[0]` (N m), clipped to +-2, for `tau` seconds."""
    torque = jnp.clip(action[0], -params.max_torque, params.max_torque)
    cost = _wrap(state.theta) ** 2 + 0.1 * state.theta_dot**2 + 0.001 * torque**2
    acceleration = 3 * params.gravity / (2 * params.length) * jnp.sin(state.theta) + 3 * torque / (
        params.mass * params.length**2
    )
    theta_dot = state.theta_dot + params.tau * acceleration
    theta_dot = jnp.clip(theta_dot, -params.max_speed, params.max_speed)
    state = State(state.theta + params.tau * theta_dot, theta_dot, state.time + 1)
    truncated = state.time >= params.max_steps_in_episode
    return observe(state), state, -cost, jnp.bool_(False), truncated, {}


def _wrap(angle: Array) -> Array:
    return jnp.mod(angle + math.pi, 2 * math.pi) - math.pi


def observe(state: State) -> Array:
    """Returns (cos theta, sin theta, theta')."""
    return jnp.stack([jnp.cos(state.theta), jnp.sin(state.theta), state.theta_dot])


def observation_space(params: Params) -> Box:
    """Returns the box of observations."""
    high = (1.0, 1.0, params.max_speed)
    return Box(tuple(-bound for bound in high), high, (3,))


def action_space(params: Params) -> Box:
    """Returns the interval of torques (N m)."""
    return Box((-params.max_torque,), (params.max_torque,), (1,))


def make() -> Environment:
    """Makes Pendulum-v1.

    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.zeros(1), env.default_params)[0].shape
    (3,)
    """
    return Environment("Pendulum-v1", reset, step, observation_space, action_space, Params())
