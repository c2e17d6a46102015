"""InvertedPendulum-v5: a cart on a rail balances a pole.

    reward = 1 unless it terminates: |angle| > 0.2 rad, or a state that is not finite

Seen: positions and velocities of cart and pole (4). Truncated after 1000 steps of 0.04 s. Source:
Gymnasium's `InvertedPendulum-v5`, which it equals step for step; Barto, Sutton & Anderson 1983,
"Neuronlike adaptive elements that can solve difficult learning control problems",
https://doi.org/10.1109/TSMC.1983.6313077.
"""

import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment
from jrl.envs.mujoco.physics import Readings
from jrl.envs.mujoco.task import Engine, Outcome, Task, draw_uniform, environment
from jrl.types import Array, Leaf

__all__ = ["Params", "TASK", "make"]


class Params(struct.PyTreeNode):
    """The angle that is too large (rad), size of the noise at the start."""

    largest_angle: Leaf = 0.2
    noise: Leaf = 0.01
    max_steps_in_episode: Leaf = 1000


def observe(x: Readings) -> Array:
    """Returns positions, then velocities."""
    return jnp.concatenate([x["qpos"], x["qvel"]])


def outcome(before: Readings, after: Readings, action: Array, dt: float, params: Params) -> Outcome:
    """Rewards every step that leaves the pole upright."""
    x = observe(after)
    upright = jnp.all(jnp.isfinite(x)) & (jnp.abs(x[1]) <= params.largest_angle)
    return upright.astype(jnp.float32), ~upright, {}


TASK = Task(
    "InvertedPendulum-v5", "inverted_pendulum.xml", 2, Params(), draw_uniform, observe, outcome
)


def make(engine: Engine = "auto") -> Environment:
    """Makes InvertedPendulum-v5; `engine` is explained in `jrl.envs.mujoco.task`.

    >>> import jax
    >>> env = make()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation.shape, env.action_space(env.default_params).shape
    ((4,), (1,))
    """
    return environment(TASK, engine)
