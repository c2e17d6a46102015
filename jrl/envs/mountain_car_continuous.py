"""MountainCarContinuous-v0: leave a valley in an underpowered car, with little force.

    v <- clip(v + P clip(a, +-1) - g cos(3 x), +-0.07)
    x <- clip(x + v, -1.2, 0.6),    v <- 0 when the left wall at -1.2 stops the car

All clips, that of the force too, are part of the task. Reward -0.1 a^2 of the action as given
(before the clip), and 100 more for the step that reaches the goal; terminated when x >= 0.45
(with v >= 0; MountainCar-v0 has 0.5); truncated after 999 steps. Source: Moore 1990, "Efficient
memory-based learning for robot control",
https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.html, as in Gymnasium's
`MountainCarContinuous-v0`, which it equals step for step (in float32).
"""

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box
from jrl.types import Array, Key, Leaf

__all__ = ["Params", "State", "make"]


class Params(struct.PyTreeNode):
    """Constants in the task's own units of length and time (one step)."""

    power: Leaf = 0.0015
    gravity: Leaf = 0.0025
    max_force: Leaf = 1.0
    min_position: Leaf = -1.2
    max_position: Leaf = 0.6
    max_speed: Leaf = 0.07
    goal_position: Leaf = 0.45
    goal_velocity: Leaf = 0.0
    max_steps_in_episode: Leaf = 999


class State(struct.PyTreeNode):
    """Position (the valley's floor is at -pi/6), velocity, steps taken."""

    position: Leaf
    velocity: Leaf
    time: Leaf


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws the position from U(-0.6, -0.4), at rest."""
    position = jax.random.uniform(key, (), minval=-0.6, maxval=-0.4)
    state = State(position, jnp.float32(0), jnp.int32(0))
    return observe(state), state


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Pushes with the force `action[0]`, clipped to +-1."""
    force = jnp.clip(action[0], -params.max_force, params.max_force)
    slope = params.gravity * jnp.cos(3 * state.position)
    velocity = state.velocity + params.power * force - slope
    velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
    position = state.position + velocity
    position = jnp.clip(position, params.min_position, params.max_position)
    stopped = (position <= params.min_position) & (velocity < 0)
    velocity = jnp.where(stopped, 0.0, velocity)
    state = State(position, velocity, state.time + 1)
    terminated = (position >= params.goal_position) & (velocity >= params.goal_velocity)
    truncated = state.time >= params.max_steps_in_episode
    reward = jnp.where(terminated, 100.0, 0.0) - 0.1 * action[0] ** 2
    return observe(state), state, reward, terminated, truncated, {}


def observe(state: State) -> Array:
    """Returns (position, velocity)."""
    return jnp.stack([state.position, state.velocity])


def observation_space(params: Params) -> Box:
    """Returns the box of positions and velocities."""
    low = (params.min_position, -params.max_speed)
    return Box(low, (params.max_position, params.max_speed), (2,))


def action_space(params: Params) -> Box:
    """Returns the interval of forces."""
    return Box((-params.max_force,), (params.max_force,), (1,))


def make() -> Environment:
    """Makes MountainCarContinuous-v0.

    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.ones(1), env.default_params)[2]
    Array(-0.1, dtype=float32)
    """
    return Environment(
        "MountainCarContinuous-v0", reset, step, observation_space, action_space, Params()
    )
