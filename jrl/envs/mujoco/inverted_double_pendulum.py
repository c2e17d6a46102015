"""InvertedDoublePendulum-v5: a cart on a rail balances two poles, one on top of the other.

    reward = 10 [tip above 1 m] - 0.01 x^2 - (y - 2)^2 - 0.001 w_1^2 - 0.005 w_2^2

with (x, y) the tip and w the angular velocities. Seen: the cart, sin and cos of the angles, the
velocities and the force that constrains the cart, the last two clipped to +-10 (9). Terminates when
the tip falls to 1 m; truncated after 1000 steps of 0.05 s. The tip's position is that of MuJoCo's
last evaluation within the step, a little before its end (up to 0.1 mm), in Gymnasium as here.
Source: Gymnasium's `InvertedDoublePendulum-v5`, which it equals step for step.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_normal, environment
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """Reward of a step that does not terminate, the height that is too low (m), the noise."""

    healthy_reward: Leaf = 10.0
    least_height: Leaf = 1.0
    noise: Leaf = 0.1
    max_steps_in_episode: Leaf = 1000


def observe(x: Readings) -> Array:
    """Returns cart, sin and cos of the angles, velocities, force on the cart."""
    cart, angles = x["qpos"][:1], x["qpos"][1:]
    velocities, force = jnp.clip(x["qvel"], -10, 10), jnp.clip(x["qfrc_constraint"][:1], -10, 10)
    return jnp.concatenate([cart, jnp.sin(angles), jnp.cos(angles), velocities, force])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards a tip that stays up, near the middle and slow."""
    x, _, y = after["site_xpos"][0]
    _, w_1, w_2 = after["qvel"]
    fallen = y <= params.least_height
    distance = 0.01 * x**2 + (y - 2) ** 2
    reward = params.healthy_reward * ~fallen - distance - 1e-3 * w_1**2 - 5e-3 * w_2**2
    return reward, fallen, {}


TASK = Task(
    "InvertedDoublePendulum-v5",
    "inverted_double_pendulum.xml",
    5,
    Params(),
    draw_normal,
    observe,
    outcome,
    fields=("qpos", "qvel", "site_xpos", "qfrc_constraint"),
)


def make(engine: Engine = "auto") -> Environment:
    """Makes InvertedDoublePendulum-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((9,), (1,))
    """
    return environment(TASK, engine)
