"""Swimmer-v5: a chain of three links swims forward in a viscous fluid.

    reward = dx/dt - 0.0001 |a|^2

Seen: the angles, and the velocities (8). It never terminates; truncated after 1000 steps of 0.04 s.
Source: Gymnasium's `Swimmer-v5`, which it equals step for step; Coulom 2002, "Reinforcement
learning using neural networks, with applications to motor control",
https://theses.hal.science/tel-00003985.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_uniform, environment, speed
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, size of the noise at the start."""

    forward_weight: Leaf = 1.0
    control_weight: Leaf = 1e-4
    noise: Leaf = 0.1
    max_steps_in_episode: Leaf = 1000


def observe(x: Readings) -> Array:
    """Returns the angles, then the velocities, those along x and y among them."""
    return jnp.concatenate([x["qpos"][2:], x["qvel"]])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards speed along x, at the price of the squared action."""
    velocity = speed(before, after, dt)
    reward = params.forward_weight * velocity - params.control_weight * jnp.sum(action**2)
    return reward, jnp.bool_(False), {"x_velocity": velocity}


TASK = Task("Swimmer-v5", "swimmer.xml", 4, Params(), draw_uniform, observe, outcome)


def make(engine: Engine = "auto") -> Environment:
    """Makes Swimmer-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((8,), (2,))
    """
    return environment(TASK, engine)
