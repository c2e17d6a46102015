"""HumanoidStandup-v5: a robot of human shape, lying on the ground, gets up.

    reward = z / h + 1 - 0.1 |a|^2 - min(5e-7 |F|^2, 10)

with z the height of the torso (m), h = 0.003 s the step of the engine and F the contact forces.
Seen: what `Humanoid-v5` shows (348). It never terminates; truncated after 1000 steps of 0.015 s.
Source: Gymnasium's `HumanoidStandup-v5`, which it equals step for step.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco import humanoid
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_uniform, environment
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, size of the noise at the start."""

    height_weight: Leaf = 1.0
    control_weight: Leaf = 0.1
    contact_weight: Leaf = 0.5e-6
    largest_contact_cost: Leaf = 10.0
    noise: Leaf = 0.01
    max_steps_in_episode: Leaf = 1000


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards height, at the price of actions and contacts."""
    contact = params.contact_weight * jnp.sum(after["cfrc_ext"] ** 2)
    cost = params.control_weight * jnp.sum(action**2)
    cost += jnp.minimum(contact, params.largest_contact_cost)
    reward = params.height_weight * after["qpos"][2] / (dt / TASK.frame_skip) + 1 - cost
    return reward, jnp.bool_(False), {"height": after["qpos"][2]}


TASK = Task(
    "HumanoidStandup-v5",
    "humanoidstandup.xml",
    5,
    Params(),
    draw_uniform,
    humanoid.observe,
    outcome,
    fields=humanoid.FIELDS,
    forward=True,
)


def make(engine: Engine = "auto") -> Environment:
    """Makes HumanoidStandup-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((348,), (17,))
    """
    return environment(TASK, engine)
