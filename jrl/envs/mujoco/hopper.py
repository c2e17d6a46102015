"""Hopper-v5: a planar robot of one leg hops forward without falling.

    reward = dx/dt + [healthy] - 0.001 |a|^2
    healthy: z > 0.7, |angle| < 0.2, every other position and velocity within +-100

Seen: the positions but for x, and the velocities clipped to +-10 (11). Terminates when not healthy;
truncated after 1000 steps of 0.008 s. Source: Gymnasium's `Hopper-v5`, which it equals step for
step; Erez, Tassa & Todorov 2011, "Infinite horizon model predictive control for nonlinear periodic
tasks", https://homes.cs.washington.edu/~todorov/papers/ErezRSS11.pdf.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_uniform, environment, speed
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, bounds of what is healthy (m, rad), size of the noise."""

    forward_weight: Leaf = 1.0
    control_weight: Leaf = 1e-3
    healthy_reward: Leaf = 1.0
    least_height: Leaf = 0.7
    largest_angle: Leaf = 0.2
    largest_state: Leaf = 100.0
    noise: Leaf = 5e-3
    max_steps_in_episode: Leaf = 1000


def observe(x: Readings) -> Array:
    """Returns positions without x, then clipped velocities."""
    return jnp.concatenate([x["qpos"][1:], jnp.clip(x["qvel"], -10, 10)])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards speed along x and being healthy, at the price of the squared action."""
    velocity = speed(before, after, dt)
    qpos, qvel = after["qpos"], after["qvel"]
    rest = jnp.concatenate([qpos[2:], qvel])
    healthy = (
        (qpos[1] > params.least_height)
        & (jnp.abs(qpos[2]) < params.largest_angle)
        & jnp.all(jnp.abs(rest) < params.largest_state)
    )
    cost = params.control_weight * jnp.sum(action**2)
    reward = params.forward_weight * velocity + params.healthy_reward * healthy - cost
    return reward, ~healthy, {"x_velocity": velocity}


TASK = Task("Hopper-v5", "hopper.xml", 4, Params(), draw_uniform, observe, outcome)


def make(engine: Engine = "auto") -> Environment:
    """Makes Hopper-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((11,), (3,))
    """
    return environment(TASK, engine)
