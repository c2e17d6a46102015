"""Reacher-v5: an arm of two links in a plane reaches for a point.

    reward = -|fingertip - target| - |a|^2

Seen: cos and sin of the angles, the target, the angular velocities and fingertip - target in the
plane (10). It never terminates; truncated after 50 steps of 0.02 s. Positions of bodies are those
of MuJoCo's last evaluation within the step, a little before its end (up to 4 mm), in Gymnasium as
here. Source: Gymnasium's `Reacher-v5`, which it equals step for step.
"""

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Start, Task, environment
from jrl.types import Array, Key, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Weights of the reward, sizes of the noise at the start, radius of the targets (m)."""

    distance_weight: Leaf = 1.0
    control_weight: Leaf = 1.0
    position_noise: Leaf = 0.1
    velocity_noise: Leaf = 5e-3
    radius: Leaf = 0.2
    max_steps_in_episode: Leaf = 50


FINGERTIP, TARGET = 3, 4
"""Numbers of the two bodies in the model."""


def draw(key: Key, qpos: Array, qvel: Array, params: Params) -> Start:
    """Draws the target from the disk, the angles from +-0.1 and their velocities from +-0.005."""
    key, radius_key = jax.random.split(key)
    noise = jax.random.uniform(key, (5,), minval=-1.0)
    # Uniform in the disk, as Gymnasium's draws that are repeated until one lies in it.
    radius = params.radius * jnp.sqrt(jax.random.uniform(radius_key))
    target = radius * jnp.stack([jnp.cos(jnp.pi * noise[4]), jnp.sin(jnp.pi * noise[4])])
    qpos = jnp.concatenate([qpos[:2] + params.position_noise * noise[:2], target])
    qvel = qvel.at[:2].add(params.velocity_noise * noise[2:4])
    a, b = qpos[0], qpos[0] + qpos[1]
    tip = jnp.stack([0.1 * jnp.cos(a) + 0.11 * jnp.cos(b), 0.1 * jnp.sin(a) + 0.11 * jnp.sin(b)])
    xpos = jnp.zeros((5, 3)).at[:, 2].set(0.01)
    return qpos, qvel, {"xpos": xpos.at[FINGERTIP, :2].set(tip).at[TARGET, :2].set(target)}


def observe(x: Readings) -> Array:
    """Returns cos and sin of the angles, target, angular velocities, fingertip - target."""
    angles, target = x["qpos"][:2], x["qpos"][2:]
    distance = (x["xpos"][FINGERTIP] - x["xpos"][TARGET])[:2]
    parts = [jnp.cos(angles), jnp.sin(angles), target, x["qvel"][:2], distance]
    return jnp.concatenate(parts)


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Costs the distance and the squared action."""
    distance = jnp.linalg.norm(after["xpos"][FINGERTIP] - after["xpos"][TARGET])
    cost = params.control_weight * jnp.sum(action**2)
    reward = -params.distance_weight * distance - cost
    return reward, jnp.bool_(False), {"distance": distance}


TASK = Task(
    "Reacher-v5",
    "reacher.xml",
    2,
    Params(),
    draw,
    observe,
    outcome,
    fields=("qpos", "qvel", "xpos"),
)


def make(engine: Engine = "auto") -> Environment:
    """Makes Reacher-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((10,), (2,))
    """
    return environment(TASK, engine)
