"""HalfCheetah-v5: a planar robot of two legs runs as fast as it can.

    reward = dx/dt - 0.1 |a|^2

Seen: the positions but for x, and the velocities (17). It never terminates; truncated after 1000
steps of 0.05 s. The cost is that of the action as it is, the engine clamps what it applies to
+-1. Source: Gymnasium's `HalfCheetah-v5`, which it equals step for step; Wawrzynski 2009, "A
cat-like robot real-time learning to run", https://doi.org/10.1007/978-3-642-04921-7_39.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_normal, environment, speed
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, size of the noise at the start."""

    forward_weight: Leaf = 1.0
    control_weight: Leaf = 0.1
    noise: Leaf = 0.1
    max_steps_in_episode: Leaf = 1000


def observe(x: Readings) -> Array:
    """Returns positions without x, then velocities."""
    return jnp.concatenate([x["qpos"][1:], x["qvel"]])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards speed along x, at the price of the squared action."""
    velocity = speed(before, after, dt)
    reward = params.forward_weight * velocity - params.control_weight * jnp.sum(action**2)
    return reward, jnp.bool_(False), {"x_velocity": velocity}


TASK = Task("HalfCheetah-v5", "half_cheetah.xml", 5, Params(), draw_normal, observe, outcome)


def make(engine: Engine = "auto") -> Environment:
    """Makes HalfCheetah-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((17,), (6,))
    """
    return environment(TASK, engine)
