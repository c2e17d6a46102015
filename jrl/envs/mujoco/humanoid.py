"""Humanoid-v5: a robot of human shape runs along x without falling.

    reward = 1.25 dx/dt + 5 [healthy] - 0.1 |a|^2 - min(5e-7 |F|^2, 10),   healthy: 1 < z < 2

with x the centre of mass and F the contact forces. Seen: the positions but for x and y, the
velocities, inertias and velocities of the bodies, forces of the actuators, and F (348). Terminates
when not healthy; truncated after 1000 steps of 0.015 s. What is derived from positions is that of
MuJoCo's last evaluation within the step, in Gymnasium as here. Source: Gymnasium's `Humanoid-v5`,
which it equals step for step; Tassa, Erez & Todorov 2012, "Synthesis and stabilization of complex
behaviors through online trajectory optimization",
https://homes.cs.washington.edu/~todorov/papers/TassaIROS12.pdf.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_uniform, environment
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make", "observe"]


class Params(struct.PyTreeNode):
    """Weights of the reward, bounds of what is healthy (m), size of the noise at the start."""

    forward_weight: Leaf = 1.25
    control_weight: Leaf = 0.1
    contact_weight: Leaf = 5e-7
    largest_contact_cost: Leaf = 10.0
    healthy_reward: Leaf = 5.0
    least_height: Leaf = 1.0
    largest_height: Leaf = 2.0
    noise: Leaf = 0.01
    max_steps_in_episode: Leaf = 1000


FIELDS = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "subtree_com")


def observe(x: Readings) -> Array:
    """Returns positions without x and y, velocities, and what the bodies feel."""
    bodies = [x["cinert"][1:], x["cvel"][1:], x["qfrc_actuator"][6:], x["cfrc_ext"][1:]]
    return jnp.concatenate([x["qpos"][2:], x["qvel"], *(body.reshape(-1) for body in bodies)])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards speed along x and being healthy, at the price of actions and contacts."""
    # The centre of mass of the world's subtree is that of everything.
    velocity = after.since(before, "subtree_com")[0, 0] / dt
    height = after["qpos"][2]
    healthy = (params.least_height < height) & (height < params.largest_height)
    contact = params.contact_weight * jnp.sum(after["cfrc_ext"] ** 2)
    cost = params.control_weight * jnp.sum(action**2)
    cost += jnp.minimum(contact, params.largest_contact_cost)
    reward = params.forward_weight * velocity + params.healthy_reward * healthy - cost
    return reward, ~healthy, {"x_velocity": velocity}


TASK = Task(
    "Humanoid-v5",
    "humanoid.xml",
    5,
    Params(),
    draw_uniform,
    observe,
    outcome,
    fields=FIELDS,
    forward=True,
)


def make(engine: Engine = "auto") -> Environment:
    """Makes Humanoid-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((348,), (17,))
    """
    return environment(TASK, engine)
