"""A MuJoCo task: what is seen, what is rewarded, what ends it and how it begins.

Each task is a file with the same sections as any environment: `Params`, `draw`, `observe`,
`outcome` and `make`. This one puts such a task on an engine and makes an `Environment` of it.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.mujoco import physics
from jrl.envs.mujoco.physics import Physics, Readings
from jrl.envs.spaces import Box
from jrl.types import Array, Key, Leaf, PyTree

__all__ = [
    "Engine",
    "Outcome",
    "Start",
    "State",
    "Task",
    "draw_normal",
    "draw_uniform",
    "engine",
    "environment",
    "speed",
]

Engine = Literal["auto", "native", "callback", "mjx"]
"""The custom call, the Python callback, MJX, or "auto": the faster of the first two that runs."""

Outcome = tuple[Array, Array, dict[str, Any]]
"""(reward f32, terminated bool, info)."""

Start = tuple[Array, Array, dict[str, Array]]
"""(qpos, qvel, readings that follow from them and are not zero)."""


class State(struct.PyTreeNode):
    """State of the physics, steps taken."""

    physics: Leaf
    time: Leaf


@dataclasses.dataclass(frozen=True)
class Task:
    """The parts of a task, functions of single states."""

    name: str
    xml: str
    """File name among Gymnasium's models."""
    frame_skip: int
    params: PyTree
    draw: Callable[[Key, Array, Array, Any], Start]
    """(key, qpos of the model, qvel of the model, params) -> a random start."""
    observe: Callable[[Readings], Array]
    outcome: Callable[[Readings, Readings, Array, float, Any], Outcome]
    """(before, after, action, seconds of a step, params) -> what the step was worth."""
    fields: tuple[str, ...] = ("qpos", "qvel")
    """Fields of `mujoco.MjData` that are read."""
    forward: bool = False
    """Whether the first readings take the engine, because `draw` cannot know them."""


def engine(task: Task, kind: Engine = "auto") -> Physics:
    """Loads the model of a task into an engine."""
    model = physics.load(task.xml, task.fields, task.frame_skip)
    if kind == "mjx":
        from jrl.envs.mujoco import mjx

        return mjx.make(model, task.name)
    from jrl.envs.mujoco import host, native

    if kind == "auto" and jax.default_backend() == "cpu":
        problem = native.problem()
        kind = "callback" if problem else "native"
        if problem:
            _warn(problem)
    return (native if kind == "native" else host).make(model)


@functools.cache
def _warn(problem: str) -> None:
    """Says once per process why environments are slow."""
    warnings.warn(f"MuJoCo: {problem}; a slower callback to Python takes its place", stacklevel=2)


def environment(task: Task, kind: Engine = "auto") -> Environment:
    """Makes the environment of a task; actions reach the engine and the reward as they are."""
    if kind not in (kinds := ("auto", "native", "callback", "mjx")):
        raise ValueError(f"engine must be one of {', '.join(kinds)}, got {kind!r}")
    body = engine(task, kind)
    model = body.model
    qpos0 = jnp.asarray(model.mj.qpos0, jnp.float32)
    low, high = (tuple(bound) for bound in model.mj.actuator_ctrlrange.T.tolist())

    def reset(key: Key, params: PyTree) -> tuple[Array, State]:
        qpos, qvel, derived = task.draw(key, qpos0, jnp.zeros(model.mj.nv), params)
        inner = physics.start(body, qpos, qvel, derived)
        if task.forward:
            inner = body.forward(inner)
        return task.observe(Readings(inner, model.layout)), State(inner, jnp.int32(0))

    def step(key: Key, state: State, action: Array, params: PyTree) -> Step:
        inner = body.step(state.physics, action)
        before, after = Readings(state.physics, model.layout), Readings(inner, model.layout)
        reward, terminated, info = task.outcome(before, after, action, model.dt, params)
        state = State(inner, state.time + 1)
        truncated = state.time >= params.max_steps_in_episode
        return task.observe(after), state, reward, terminated, truncated, info

    size = jax.eval_shape(reset, jax.random.key(0), task.params)[0].shape

    def observation_space(params: PyTree) -> Box:
        return Box(-math.inf, math.inf, size)

    def action_space(params: PyTree) -> Box:
        return Box(low, high, (model.mj.nu,))

    return Environment(task.name, reset, step, observation_space, action_space, task.params)


def draw_uniform(key: Key, qpos: Array, qvel: Array, params: Any) -> Start:
    """Adds U(-1, 1) times `params.noise` to every position and velocity."""
    noise = params.noise * jax.random.uniform(key, (qpos.size + qvel.size,), minval=-1.0)
    return qpos + noise[: qpos.size], qvel + noise[qpos.size :], {}


def draw_normal(key: Key, qpos: Array, qvel: Array, params: Any) -> Start:
    """Adds U(-1, 1) times `params.noise` to the positions and N(0, 1) times it to velocities."""
    position_key, velocity_key = jax.random.split(key)
    qpos = qpos + params.noise * jax.random.uniform(position_key, qpos.shape, minval=-1.0)
    return qpos, qvel + params.noise * jax.random.normal(velocity_key, qvel.shape), {}


def speed(before: Readings, after: Readings, dt: float, name: str = "qpos") -> Array:
    """Mean velocity along x of what `name` begins with, for example the root's position."""
    return after.since(before, name).reshape(-1)[0] / dt
