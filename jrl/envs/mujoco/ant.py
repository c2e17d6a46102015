"""Ant-v5: a robot of four legs runs along x.

    reward = dx/dt + [healthy] - 0.5 |a|^2 - 0.0005 |F|^2,   healthy: 0.2 <= z <= 1, finite

with F the contact forces, clipped to +-1. Seen: the positions but for x and y, the velocities, and
F (105). Terminates when not healthy; truncated after 1000 steps of 0.05 s. The torso's position is
that of MuJoCo's last evaluation within the step, in Gymnasium as here. Source: Gymnasium's
`Ant-v5`, which it equals step for step; Schulman et al. 2016, "High-dimensional continuous control
using generalized advantage estimation", https://arxiv.org/abs/1506.02438.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Start, Task, draw_normal, environment
from jrl.types import Array, Key, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, bounds of what is healthy (m), size of the noise at the start."""

    forward_weight: Leaf = 1.0
    control_weight: Leaf = 0.5
    contact_weight: Leaf = 5e-4
    healthy_reward: Leaf = 1.0
    least_height: Leaf = 0.2
    largest_height: Leaf = 1.0
    noise: Leaf = 0.1
    max_steps_in_episode: Leaf = 1000


TORSO = 1
"""Number of the body whose speed counts."""


def draw(key: Key, qpos: Array, qvel: Array, params: Params) -> Start:
    """Adds U(-0.1, 0.1) to the positions and N(0, 0.1^2) to the velocities."""
    qpos, qvel, _ = draw_normal(key, qpos, qvel, params)
    return qpos, qvel, {"xpos": jnp.zeros((14, 3)).at[TORSO].set(qpos[:3])}


def observe(x: Readings) -> Array:
    """Returns positions without x and y, velocities, contact forces of the bodies."""
    forces = jnp.clip(x["cfrc_ext"][1:], -1, 1).reshape(-1)
    return jnp.concatenate([x["qpos"][2:], x["qvel"], forces])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards speed along x and being healthy, at the price of actions and contacts."""
    velocity = after.since(before, "xpos")[TORSO, 0] / dt
    height = after["qpos"][2]
    finite = jnp.all(jnp.isfinite(after["qpos"])) & jnp.all(jnp.isfinite(after["qvel"]))
    healthy = finite & (params.least_height <= height) & (height <= params.largest_height)
    contact = params.contact_weight * jnp.sum(jnp.clip(after["cfrc_ext"], -1, 1) ** 2)
    cost = params.control_weight * jnp.sum(action**2) + contact
    reward = params.forward_weight * velocity + params.healthy_reward * healthy - cost
    return reward, ~healthy, {"x_velocity": velocity}


TASK = Task(
    "Ant-v5",
    "ant.xml",
    5,
    Params(),
    draw,
    observe,
    outcome,
    fields=("qpos", "qvel", "xpos", "cfrc_ext"),
)


def make(engine: Engine = "auto") -> Environment:
    """Makes Ant-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((105,), (8,))
    """
    return environment(TASK, engine)
